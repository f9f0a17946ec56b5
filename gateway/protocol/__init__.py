"""One folder for each inbound, outbound or endpoint type of the JSON."""
