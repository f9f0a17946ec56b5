"""One file for each sniffed protocol. Pure."""
