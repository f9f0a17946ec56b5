// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Marks the sockets of this host with the class of their process, and remembers who owns them.
 *
 * sock_create decides at birth (an unconnected UDP socket's first datagram takes its mark before sendmsg4/6 run),
 * connect4/6 and sendmsg4/6 decide again, since user, groups and executable may have changed meanwhile.
 *
 * What cannot be seen whole (a path too long, too many groups) gets UNKNOWN where the plan asks for it: userspace then
 * judges. The plan is double: every value has two sides, and `settings.epoch`, read once a call, says which one holds.
 *
 * Helpers: all in Linux 5.10 but bpf_setsockopt in sendmsg4/6 (5.12); the loader does without those two if it must.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "executable.h"

#define SOL_SOCKET 1
#define SO_MARK 36

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

#define RULES(NAME, KEY, SIZE) \
	struct { \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__uint(max_entries, SIZE); \
		__type(key, KEY); \
		__type(value, struct sides); \
	} NAME SEC(".maps")

typedef char path_key[PATH];
typedef char name_key[COMPONENT];

RULES(paths, path_key, 8192);
RULES(names, name_key, 8192);
RULES(uids, __u32, 8192);
RULES(gids, __u32, 8192);
/* mask -> socket class + 1; 0 on a side: the mask is not of that plan. */
RULES(classes, __u64, 32768);

/* At the bound the socket used longest ago is forgotten; its owner is then found through /proc. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct owner);
} owners SEC(".maps");

static __always_inline __u64 bits(void *map, const void *key, __u32 epoch)
{
	struct sides *sides = bpf_map_lookup_elem(map, key);

	return sides ? sides->of[epoch & 1] : 0;
}

/* Path and name. The name is looked up while the leaf stands alone in the buffer: its first bytes are then the key. */
static __always_inline __u64 by_executable(struct task_struct *task, struct owner *owner, __u32 epoch)
{
	struct place place;
	__u64 mask, at;
	int i, end = 0;

	if (!executable(task, &place))
		return 0;
	at = append(owner->path, 0, place.dentry);
	if (!at) {
		owner->flags = PATH_INCOMPLETE | NAME_INCOMPLETE;
		return 0;
	}
	mask = bits(&names, owner->path, epoch);
	place.dentry = parent_of(place.dentry);
	for (i = 0; i < DEPTH; i++) {
		if (climb(&place, &end)) {
			if (end)
				return mask | bits(&paths, owner->path, epoch);
			continue;
		}
		at = append(owner->path, at, place.dentry);
		if (!at)
			break;
		place.dentry = parent_of(place.dentry);
	}
	owner->flags = PATH_INCOMPLETE;
	return mask;
}

/* uid, gid and supplementary groups. Sets *many where there are more groups than are looked at. */
static __always_inline __u64 by_user(struct task_struct *task, struct owner *owner, __u32 epoch, int *many)
{
	const struct cred *cred = BPF_CORE_READ(task, cred);
	struct group_info *info = BPF_CORE_READ(cred, group_info);
	void *list = __builtin_preserve_access_index(&info->gid);
	int count = BPF_CORE_READ(info, ngroups);
	__u64 mask;
	__u32 gid;
	int i;

	/* fsuid and fsgid: what the kernel gives a socket's inode, so what sock_diag and nft's skuid show. */
	owner->uid = BPF_CORE_READ(cred, fsuid.val);
	owner->gid = BPF_CORE_READ(cred, fsgid.val);
	mask = bits(&uids, &owner->uid, epoch) | bits(&gids, &owner->gid, epoch);
	for (i = 0; i < GROUPS; i++) {
		if (i >= count)
			break;
		if (bpf_probe_read_kernel(&gid, sizeof(gid), list + i * sizeof(gid)))
			break;
		mask |= bits(&gids, &gid, epoch);
	}
	*many = count > GROUPS;
	return mask;
}

/* Class of the current task; fills in `owner`. */
static __always_inline __u32 judge(const struct settings *plan, struct owner *owner)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 epoch = plan->epoch & 1, wants = plan->wants[epoch];
	struct sides *sides;
	int many = 0;
	__u64 mask;

	owner->tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
	mask = by_executable(task, owner, epoch);
	mask |= by_user(task, owner, epoch, &many);
	if ((wants & WANT_PATH && owner->flags & PATH_INCOMPLETE) ||
	    (wants & WANT_NAME && owner->flags & NAME_INCOMPLETE) || (wants & WANT_GROUP && many))
		return UNKNOWN;
	sides = bpf_map_lookup_elem(&classes, &mask);
	if (!sides || !sides->of[epoch])
		return UNKNOWN;
	return (__u32)sides->of[epoch] - 1;
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
	bpf_map_update_elem(&owners, &cookie, &owner, BPF_ANY);
	if (!ours(mark) || class >= OWN)
		return mark;
	return (mark & ~BYTE) | class << SOCKET_SHIFT;
}

static __always_inline const struct settings *here(__u64 netns)
{
	__u32 zero = 0;
	const struct settings *plan = bpf_map_lookup_elem(&settings, &zero);

	return plan && plan->netns == netns ? plan : 0;
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
