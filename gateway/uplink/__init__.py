"""The WAN side: DHCP client, static addresses, leases; and the LAN's dnsmasq."""
