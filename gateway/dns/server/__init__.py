"""One file for each DNS server type of the JSON."""
