/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What offload.bpf.c knows of a flow. Sizes are checked by gateway/kernel/bpf/offload.py.
 */
#ifndef GATEWAY_OFFLOAD_H
#define GATEWAY_OFFLOAD_H

/* One leaving packet in so many is looked at, and what is looked at twice is learned: a short flow is over before, and
 * would lose more by it than it gains. A prime: of packets that alternate between directions, both have their turn. */
#define SAMPLE 251
/* Nanoseconds after which a flow goes the long way again, until it is learned again: the kernel then looks at its route,
 * its neighbour, its rules, and its timeout anew. */
#define LIFE 1000000000ull
/* Nanoseconds after which conntrack has forgotten a silent UDP flow: an entry at the same place is another's. */
#define STREAM 120000000000ull
/* Directions of flows at once, about 200 bytes each; at the bound the one unused longest is forgotten, and its count. */
#define FLOWS 16384
/* Places for pairs of ports, a power of two: most packets of short flows are told from those of learned ones by these
 * alone. */
#define PLACES 4096
/* Places for flows that were looked at once, a power of two. */
#define SEEN 256

/* gateway/kernel/mark.py */
#define CLASS 0x07000000u
#define DIRECT 0x02000000u

struct ends {
	__be32 source[4]; /* IPv4: the first, the others zero */
	__be32 destination[4];
	__be16 sport;
	__be16 dport;
};

/* One direction of a flow, as its packets arrive. */
struct flow {
	struct ends ends;
	__u32 interface;
	__u8 family; /* 4 or 6 */
	__u8 protocol;
	__u16 pad;
};

/* How its packets leave. */
struct hop {
	__u64 until; /* CLOCK_MONOTONIC_COARSE */
	struct ends ends;
	__u32 interface;
	__u32 mtu;
	__u32 priority;
	__u32 mark;
	__u16 addresses; /* what the new addresses add to a checksum */
	__u16 ports;
	__u8 ether[14];
	__u8 direct; /* is it of class direct? What has no class is not counted among it */
	__u8 pad;
	/* Of its packets that went the short way, as conntrack would have counted them. */
	__u64 packets;
	__u64 bytes; /* from the IP header on */
	__u64 entry; /* conntrack's, of whom they are: another connection may have the same ends later */
};

struct count {
	__u64 packets;
	__u64 bytes;
};

#endif
