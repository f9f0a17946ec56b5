"""The outbound that lets nothing through. There is no protocol, so no codec."""
