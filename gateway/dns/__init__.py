"""DNS servers, rules, cache, and the router between them."""
