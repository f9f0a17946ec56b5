"""One file for each rule key of the JSON. Pure."""
