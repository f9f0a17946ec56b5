"""Links, addresses, routes and rules through pyroute2."""
