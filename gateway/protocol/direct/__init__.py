"""Straight onto the network: as an inbound a port whose flows go to one fixed place, as an outbound no proxy at all.

There is no protocol, so no codec.
"""
