"""dnsmasq for the LANs: names (the LAN's port 53), DHCPv4, router advertisements.

It is not tied to our life: it runs in its own session, survives our SIGKILL, and the next start adopts it. Only the
journal's replay (``down``) stops it.
"""
