"""TCP flows that nftables sends here with ``redirect``; their original destination is in conntrack (SO_ORIGINAL_DST).

There is no codec.
"""
