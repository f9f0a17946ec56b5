"""A group of outbounds of which a person chooses one. There is no protocol, so no codec."""
