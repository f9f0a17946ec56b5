"""The interfaces of the router: uplinks (DHCPv4, static, or somebody else's) and LANs (addresses, dnsmasq).

::

    options     the JSON objects ``gateway.uplinks[]`` and ``gateway.lans[]``
    plan        lease and options to addresses and routes             pure
    uplink      one uplink: waits, runs its client, applies, publishes
    uplinks     all of them; ``core.contracts.Leases``
    owner       which other program configures an interface
    commandline DHCPv4 clients by their command lines                 pure
    inventory   the ports of this host, for ``gateway init``
    watch       who else plays the router on a LAN, for ``gateway doctor``
    lan         LAN addresses, bridges, and the dnsmasq that serves them
    leases      who has which address
    dhcp4       the DHCPv4 client
    dnsmasq     its configuration file and its process
"""
