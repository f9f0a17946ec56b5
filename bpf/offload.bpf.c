// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A short way through the router for what conntrack and the rules have let pass: what a flowtable does, for kernels that
 * have none.
 *
 * `learn`, where packets leave, looks at some that the kernel has forwarded: it keeps how the packet came (as conntrack
 * has it) and how it leaves (as the packet itself shows: addresses, ports, link layer). `forward`, where packets arrive,
 * sends those of a known flow the same way at once, and counts them. Whatever is not plain stays on the long way: the
 * first and last packets of a connection, fragments, IP options, packets that are too large or too old. Each flow goes
 * the long way again once in LIFE, so nothing needs to be told to forget it; its count stays.
 *
 * Conntrack sees few of the packets, so that its window check must be off (nf_conntrack_tcp_be_liberal). Ethernet alone.
 * Needs tcx (Linux 6.6), and BTF.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "offload.h"

#define TCX_NEXT -1
#define TC_ACT_SHOT 2
#define PACKET_HOST 0
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH 14
#define IPV4 20
#define IPV6 40
#define UDP 8
#define TTL 8
#define HOP_LIMIT 7
#define TCP_CHECK 16
#define UDP_CHECK 6
#define FIN_SYN_RST 0x07
#define FRAGMENT 0x3FFF /* more fragments, or an offset */
#define INFO 7ul /* of skb->_nfct: enum ip_conntrack_info; the rest is the entry */
#define NOREF 1ul /* of skb->_skb_refdst */
#define METRICS 3ul /* of dst->_metrics: flags */
#define RTAX_MTU 2

/* enum ip_conntrack_info */
#define ESTABLISHED 0
#define ESTABLISHED_REPLY 3
/* enum ip_conntrack_status: both wanted; none wanted of sequence numbers rewritten, dying, template, untracked, helper,
 * offloaded by a flowtable. */
#define SETTLED (1 << 2 | 1 << 3)
#define ODD (1 << 6 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14)

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS);
	__type(key, struct flow);
	__type(value, struct hop);
} flows SEC(".maps");

/* What went the short way of class direct, by CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct count);
} carried SEC(".maps");

/* Until when some flow of these ports may be known. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, __u64);
} places SEC(".maps");

/* Until when any flow may be known; 0: none is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} latest SEC(".maps");

/* What was looked at lately and is not known yet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SEEN);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

/* Packets that left since one was looked at, by CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} left SEC(".maps");

/* Of include/net/netfilter/nf_conntrack_tuple.h; laid out so since Linux 2.6.20. */
struct tuple {
	__be32 source[4];
	__be16 sport;
	__u16 family;
	__be32 destination[4];
	__be16 dport;
	__u8 protocol;
	__u8 direction;
};

/* Conntrack may be a module, and the kernel's own BTF then does not have it: what we read of it, relocated by name. */
struct nf_conntrack_tuple_hash___read {
	struct tuple tuple;
} __attribute__((preserve_access_index));

struct nf_conn___read {
	struct nf_conntrack_tuple_hash___read tuplehash[2];
	unsigned long status;
	__u32 mark;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *) __ksym;

/* Where things stand in the packet. */
struct shape {
	__be16 sport;
	__be16 dport;
	__u32 transport; /* its header, from the start of the frame */
	__u8 family;
	__u8 protocol;
	__u8 left; /* TTL or hop limit */
	__u16 sum; /* checksum of the IPv4 header */
};

/* 0 where the frame is anything but plain TCP or UDP. */
static __always_inline int read(struct __sk_buff *ctx, struct shape *shape)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ether = data;
	__be16 *ports;

	if (ctx->vlan_present || data + ETH + IPV6 > end)
		return 0;
	if (ether->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH;

		if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(FRAGMENT))
			return 0;
		shape->family = 4;
		shape->protocol = ip->protocol;
		shape->left = ip->ttl;
		shape->sum = ip->check;
		shape->transport = ETH + IPV4;
	} else if (ether->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + ETH;

		shape->family = 6;
		shape->protocol = ip->nexthdr;
		shape->left = ip->hop_limit;
		shape->transport = ETH + IPV6;
	} else {
		return 0;
	}
	ports = data + shape->transport;
	if ((void *)(ports + 2) > end || (shape->protocol != IPPROTO_TCP && shape->protocol != IPPROTO_UDP))
		return 0;
	shape->sport = ports[0];
	shape->dport = ports[1];
	return 1;
}

static __always_inline __u64 *place_of(__be16 sport, __be16 dport)
{
	__u32 place = ((__u16)(sport ^ dport) * 40503u >> 8) & (PLACES - 1);

	return bpf_map_lookup_elem(&places, &place);
}

/* Has a packet of this flow been looked at before? A short flow is over by the second, and costs no more than this. */
static __always_inline int again(const struct ends *ends)
{
	__u64 sign = ends->source[0] ^ ends->source[3] ^ ends->destination[0] ^ ends->destination[3];
	/* Another place for the other direction: they would drive each other out. */
	__u32 place = ((__u16)(ends->sport * 3 + ends->dport) * 40503u >> 8) & (SEEN - 1);
	__u64 *at = bpf_map_lookup_elem(&seen, &place);

	sign = sign << 32 | (__u32)ends->sport << 16 | ends->dport;
	if (!at)
		return 0;
	if (*at == sign)
		return 1;
	*at = sign;
	return 0;
}

/* The flow of a frame that has been read; 0 where the frame is too short. */
static __always_inline int identify(struct __sk_buff *ctx, const struct shape *shape, struct flow *flow)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + ETH + IPV6 > end)
		return 0;
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->family = shape->family;
	flow->protocol = shape->protocol;
	flow->ends.sport = shape->sport;
	flow->ends.dport = shape->dport;
	if (shape->family == 4) {
		struct iphdr *ip = data + ETH;

		flow->ends.source[0] = ip->saddr;
		flow->ends.destination[0] = ip->daddr;
	} else {
		struct ipv6hdr *ip = data + ETH;

		__builtin_memcpy(flow->ends.source, &ip->saddr, 16);
		__builtin_memcpy(flow->ends.destination, &ip->daddr, 16);
	}
	return 1;
}

/* The first or last packet of its connection? And bytes of the headers that each segment of it has. */
static __always_inline int bounds(struct __sk_buff *ctx, const struct shape *shape, __u32 *headers)
{
	__u8 tcp[2];

	*headers = shape->transport - ETH + UDP;
	if (shape->protocol == IPPROTO_UDP)
		return 0;
	if (bpf_skb_load_bytes(ctx, shape->transport + 12, tcp, sizeof(tcp)))
		return 1;
	*headers = shape->transport - ETH + (tcp[0] >> 4) * 4;
	return tcp[1] & FIN_SYN_RST;
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline void ends_of(struct ends *ends, const struct nf_conn___read *entry, int direction)
{
	const void *at = direction ? &entry->tuplehash[1].tuple : &entry->tuplehash[0].tuple;
	struct tuple tuple = {};

	bpf_probe_read_kernel(&tuple, sizeof(tuple), at);
	__builtin_memcpy(ends->source, tuple.source, 16);
	__builtin_memcpy(ends->destination, tuple.destination, 16);
	ends->sport = tuple.sport;
	ends->dport = tuple.dport;
}

static __always_inline int same(const struct ends *one, const struct ends *other)
{
	__u32 i, differ = (one->sport ^ other->sport) | (one->dport ^ other->dport);

	for (i = 0; i < 4; i++)
		differ |= (one->source[i] ^ other->source[i]) | (one->destination[i] ^ other->destination[i]);
	return !differ;
}

static __always_inline int mirrors(const struct ends *one, const struct ends *other)
{
	struct ends turned = {.sport = one->dport, .dport = one->sport};

	__builtin_memcpy(turned.source, one->destination, 16);
	__builtin_memcpy(turned.destination, one->source, 16);
	return same(&turned, other);
}

/* The largest packet that the kernel would send there without a fragment or an error. */
static __always_inline __u32 mtu_of(struct sk_buff *skb, __u8 family)
{
	struct dst_entry *route = (void *)(BPF_CORE_READ(skb, _skb_refdst) & ~NOREF);
	struct net_device *device = BPF_CORE_READ(skb, dev);
	__u32 *metrics, mtu, own = 0;

	mtu = family == 6 ? BPF_CORE_READ(device, ip6_ptr, cnf.mtu6) : BPF_CORE_READ(device, mtu);
	if (!route)
		return 0;
	metrics = (void *)(BPF_CORE_READ(route, _metrics) & ~METRICS);
	bpf_probe_read_kernel(&own, sizeof(own), metrics + RTAX_MTU - 1);
	return own && own < mtu ? own : mtu;
}

SEC("tc")
int learn(struct __sk_buff *ctx)
{
	struct sk_buff *skb;
	const struct nf_conn___read *entry;
	struct shape shape;
	struct flow flow;
	struct hop hop, *old;
	struct ends back;
	unsigned long tracked, status;
	__u32 zero = 0, class, headers, *count = bpf_map_lookup_elem(&left, &zero);
	__u64 *place, *last;
	int reply;

	if (!count || ++*count < SAMPLE || !ctx->ingress_ifindex)
		return TCX_NEXT;
	*count = 0;
	if (!read(ctx, &shape) || bounds(ctx, &shape, &headers))
		return TCX_NEXT;
	skb = bpf_cast_to_kern_ctx(ctx);
	tracked = BPF_CORE_READ(skb, _nfct);
	entry = (void *)(tracked & ~INFO);
	reply = (tracked & INFO) == ESTABLISHED_REPLY;
	if (!entry || (!reply && (tracked & INFO) != ESTABLISHED))
		return TCX_NEXT;
	status = BPF_CORE_READ(entry, status);
	if (status & ODD || (status & SETTLED) != SETTLED)
		return TCX_NEXT;
	class = BPF_CORE_READ(entry, mark) & CLASS;
	if (class & ~DIRECT || !identify(ctx, &shape, &flow))
		return TCX_NEXT;
	__builtin_memset(&hop, 0, sizeof(hop));
	hop.ends = flow.ends;
	/* It must be the packet that conntrack would send: no tunnel around it, nothing that rewrote it after NAT. */
	ends_of(&back, entry, !reply);
	if (!mirrors(&back, &hop.ends))
		return TCX_NEXT;
	ends_of(&flow.ends, entry, reply);
	/* IPv6 is rewritten by nobody here; where somebody else does, it goes the long way. */
	if ((flow.family == 6 && !same(&flow.ends, &hop.ends)) || !again(&flow.ends))
		return TCX_NEXT;
	flow.interface = ctx->ingress_ifindex;
	hop.until = bpf_ktime_get_coarse_ns() + LIFE;
	hop.interface = ctx->ifindex;
	hop.mtu = mtu_of(skb, flow.family);
	hop.priority = ctx->priority;
	hop.mark = ctx->mark;
	hop.direct = class == DIRECT;
	hop.addresses = fold(bpf_csum_diff(flow.ends.source, 32, hop.ends.source, 32, 0));
	hop.ports = fold(bpf_csum_diff((__be32 *)&flow.ends.sport, 4, (__be32 *)&hop.ends.sport, 4, 0));
	place = place_of(flow.ends.sport, flow.ends.dport);
	last = bpf_map_lookup_elem(&latest, &zero);
	if (!place || !last || bpf_skb_load_bytes(ctx, 0, hop.ether, ETH))
		return TCX_NEXT;
	hop.entry = (__u64)entry;
	/* Nobody adds to it now: what is known goes the short way, and comes here without an entry. */
	old = bpf_map_lookup_elem(&flows, &flow);
	if (old && old->entry == hop.entry && (flow.protocol == IPPROTO_TCP || hop.until < old->until + STREAM)) {
		hop.packets = old->packets;
		hop.bytes = old->bytes;
	}
	bpf_map_update_elem(&flows, &flow, &hop, BPF_ANY);
	*place = *last = hop.until;
	return TCX_NEXT;
}

/* The IPv4 header from its TTL on. */
struct rest {
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 source;
	__be32 destination;
};

static __always_inline int rewrite4(struct __sk_buff *ctx, const struct hop *hop, const struct shape *shape)
{
	struct rest rest = {.ttl = shape->left - 1, .protocol = shape->protocol};
	__u64 none = shape->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0; /* UDP may have no checksum */
	__u32 check = shape->transport;

	check += shape->protocol == IPPROTO_UDP ? UDP_CHECK : TCP_CHECK;
	/* RFC 1624: the old sum, what the addresses add, and the TTL less one. */
	rest.check = ~fold((__u16)~shape->sum + hop->addresses + (__u16)~bpf_htons(0x0100));
	rest.source = hop->ends.source[0];
	rest.destination = hop->ends.destination[0];
	if (bpf_skb_store_bytes(ctx, ETH + TTL, &rest, sizeof(rest), 0))
		return -1;
	if (hop->addresses && bpf_l4_csum_replace(ctx, check, 0, hop->addresses, BPF_F_PSEUDO_HDR | none))
		return -1;
	if (!hop->ports)
		return 0;
	if (bpf_l4_csum_replace(ctx, check, 0, hop->ports, none))
		return -1;
	return bpf_skb_store_bytes(ctx, shape->transport, &hop->ends.sport, 4, 0);
}

SEC("tc")
int forward(struct __sk_buff *ctx)
{
	struct shape shape;
	struct flow flow;
	struct hop *hop;
	struct count *all;
	__u32 zero = 0, headers, segment, size;
	__u64 *place, *any, now;
	__u8 less;
	int last;

	any = bpf_map_lookup_elem(&latest, &zero);
	if (!any || !*any)
		return TCX_NEXT;
	now = bpf_ktime_get_coarse_ns();
	if (*any < now) {
		*any = 0;
		return TCX_NEXT;
	}
	if (ctx->pkt_type != PACKET_HOST || !read(ctx, &shape))
		return TCX_NEXT;
	place = place_of(shape.sport, shape.dport);
	if (!place || *place < now || !identify(ctx, &shape, &flow))
		return TCX_NEXT;
	flow.interface = ctx->ifindex;
	hop = bpf_map_lookup_elem(&flows, &flow);
	if (!hop)
		return TCX_NEXT;
	if (hop->until < now)
		return TCX_NEXT;
	last = bounds(ctx, &shape, &headers);
	if (last) {
		hop->until = 0;
		return TCX_NEXT;
	}
	/* Each by itself: a compiler that chooses between two addresses first is not followed by the verifier. */
	segment = ctx->gso_size;
	barrier_var(segment);
	size = segment ? headers + segment : ctx->len - ETH;
	if (shape.left <= 1 || size > hop->mtu || bpf_skb_store_bytes(ctx, 0, hop->ether, ETH, 0))
		return TCX_NEXT;
	if (shape.family == 4) {
		if (rewrite4(ctx, hop, &shape))
			return TC_ACT_SHOT;
	} else {
		less = shape.left - 1;
		/* A network card's sum over the packet covers it; in IPv4 the header's own checksum outweighs the change. */
		if (bpf_skb_store_bytes(ctx, ETH + HOP_LIMIT, &less, 1, BPF_F_RECOMPUTE_CSUM))
			return TC_ACT_SHOT;
	}
	__sync_fetch_and_add(&hop->packets, 1);
	__sync_fetch_and_add(&hop->bytes, ctx->len - ETH);
	all = hop->direct ? bpf_map_lookup_elem(&carried, &zero) : 0;
	if (all) {
		all->packets++;
		all->bytes += ctx->len - ETH;
	}
	ctx->priority = hop->priority;
	ctx->mark = hop->mark;
	return bpf_redirect(hop->interface, 0);
}
