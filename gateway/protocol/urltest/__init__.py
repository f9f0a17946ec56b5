"""A group of outbounds of which the quickest is used, as far as probes can tell. There is no protocol, so no codec:
``choice`` is what decides."""
