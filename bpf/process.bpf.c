// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Marks the sockets of this host with the class of their process, and remembers who owns them.
 *
 * sock_create decides at birth (an unconnected UDP socket's first datagram takes its mark before sendmsg4/6 run),
 * connect4/6 and sendmsg4/6 decide again, since user, groups and executable may have changed meanwhile.
 *
 * What cannot be seen whole (a path too long, too many groups) gets UNKNOWN where it could change the class: userspace
 * then judges. So does, where expressions or cgroups are asked for, an executable or cgroup that userspace has not judged
 * yet; that it has done so is `learned`. The plan is double: every value has two sides, and `settings.epoch`, read once a
 * call, says which holds.
 *
 * One program, two ways into the kernel: co_re.h has the maps and what is seen of a task where BTF tells its layout,
 * bcc.h what is left without.
 *
 * Helpers: all in Linux 5.10 but bpf_setsockopt in sendmsg4/6 (5.12); the loader does without those two if it must.
 */
#ifdef BCC
#include "bcc.h"
#else
#include "co_re.h"
#endif

#define SOL_SOCKET 1
#define SO_MARK 36

static __always_inline __u64 bits(void *map, void *key, __u32 epoch)
{
	struct sides *sides = bpf_map_lookup_elem(map, key);

	return sides ? sides->of[epoch & 1] : 0;
}

/* What userspace says of `key` under this plan; where it has said nothing yet, `missing` goes into `flags`. */
static __always_inline __u64 learned(void *map, void *key, __u32 epoch, __u32 *flags, __u32 missing)
{
	struct learned *found = bpf_map_lookup_elem(map, key);

	if (found && found->epoch == epoch)
		return found->bits;
	*flags |= missing;
	return 0;
}

/* Bits that the mask of this task might have beside those it has. */
static __always_inline __u64 unseen(const struct asks *asks, __u32 flags)
{
	__u64 mask = 0;

	if (flags & PATH_INCOMPLETE)
		mask |= asks->paths;
	if (flags & NAME_INCOMPLETE)
		mask |= asks->names;
	if (flags & GROUPS_INCOMPLETE)
		mask |= asks->gids;
	if (flags & PATH_UNJUDGED)
		mask |= asks->expressions;
	if (flags & CGROUP_UNJUDGED)
		mask |= asks->cgroups;
	return mask;
}

/* Class of the current task; fills in `owner`. */
static __always_inline __u32 judge(const struct settings *plan, struct owner *owner)
{
	__u32 epoch = plan->epoch;
	const struct asks *asks = &plan->asks[epoch & 1];
	struct sides *sides;
	__u64 mask;

	owner->tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
	owner->cgroup = bpf_get_current_cgroup_id();
	mask = observe(owner, asks, epoch);
	if (asks->cgroups)
		mask |= learned(MAP(cgroups), &owner->cgroup, epoch, &owner->flags, CGROUP_UNJUDGED);
	if (unseen(asks, owner->flags) & ~mask)
		return UNKNOWN;
	sides = bpf_map_lookup_elem(MAP(classes), &mask);
	if (!sides || !sides->of[epoch & 1])
		return UNKNOWN;
	return (__u32)sides->of[epoch & 1] - 1;
}

/* May a mark be given to a socket that carries `mark`? Only in place of nothing, or of a class. */
static __always_inline int ours(__u32 mark)
{
	return !(mark & BYTE & ~SOCKET) && mark >> SOCKET_SHIFT != OWN;
}

/* The whole mark for a socket that carries `mark`; the same where nothing is to be done. */
static __always_inline __u32 remark(void *ctx, const struct settings *plan, __u32 mark)
{
	struct owner owner;
	__u64 cookie = bpf_get_socket_cookie(ctx);
	__u32 class;

	__builtin_memset(&owner, 0, sizeof(owner));
	class = judge(plan, &owner);
	bpf_map_update_elem(MAP(owners), &cookie, &owner, BPF_ANY);
	if (plan->asks[plan->epoch & 1].gids)
		keep_groups(&cookie);
	if (!ours(mark) || class >= OWN)
		return mark;
	return (mark & ~BYTE) | class << SOCKET_SHIFT;
}

static __always_inline const struct settings *here(__u64 netns)
{
	__u32 zero = 0;
	const struct settings *plan = bpf_map_lookup_elem(MAP(settings), &zero);

	if (plan && plan->netns != netns)
		plan = 0;
	/* Else the compiler may make callers test `netns` again in place of `plan`, which a verifier does not follow. */
	barrier_var(plan);
	return plan;
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *ctx)
{
	const struct settings *plan = here(bpf_get_netns_cookie(ctx));

	if (plan)
		ctx->mark = remark(ctx, plan, ctx->mark);
	return 1;
}

static __always_inline int again(struct bpf_sock_addr *ctx)
{
	const struct settings *plan = here(bpf_get_netns_cookie(ctx));
	struct bpf_sock *sk = ctx->sk;
	__u32 old, mark;

	if (!plan || !sk)
		return 1;
	old = sk->mark;
	/* One of the gateway's own: it may send a datagram to somebody else each time, and nobody asks whose it is. */
	if (old >> SOCKET_SHIFT == OWN)
		return 1;
	mark = remark(ctx, plan, old);
	if (mark != old)
		bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
	return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return again(ctx);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return again(ctx);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return again(ctx);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return again(ctx);
}
