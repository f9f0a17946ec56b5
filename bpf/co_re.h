/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * For process.bpf.c as a CO-RE object: maps that libbpf makes, and a task seen whole, through relocated fields.
 */
#ifndef GATEWAY_CO_RE_H
#define GATEWAY_CO_RE_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "executable.h"

#define MAP(NAME) (&NAME)

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

/* What userspace has judged; at the bound what was met longest ago is forgotten, and judged anew when it comes back. */
#define LEARNED(NAME, KEY, SIZE) \
	struct { \
		__uint(type, BPF_MAP_TYPE_LRU_HASH); \
		__uint(max_entries, SIZE); \
		__type(key, KEY); \
		__type(value, struct learned); \
	} NAME SEC(".maps")

LEARNED(executables, path_key, 2048);
LEARNED(cgroups, __u64, 4096);

/* At the bound the socket used longest ago is forgotten; its owner is then found through /proc. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct owner);
} owners SEC(".maps");

/* Only where the plan asks for groups. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct members);
} members SEC(".maps");

/* Zero: what an element of `members` is before it is filled where it lies, since the stack has no room for it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct members);
} empty SEC(".maps");

/* process.bpf.c */
static __always_inline __u64 bits(void *map, void *key, __u32 epoch);
static __always_inline __u64 learned(void *map, void *key, __u32 epoch, __u32 *flags, __u32 missing);

/* Of a path that the plan lists it knows which expressions hold. */
static __always_inline __u64 by_path(struct owner *owner, const struct asks *asks, __u32 epoch)
{
	__u64 mask = bits(MAP(paths), owner->path, epoch);

	if (!mask && asks->expressions)
		mask = learned(MAP(executables), owner->path, epoch, &owner->flags, PATH_UNJUDGED);
	return mask;
}

/* Path and name. The name is looked up while the leaf stands alone in the buffer: its first bytes are then the key. */
static __always_inline __u64
by_executable(struct task_struct *task, struct owner *owner, const struct asks *asks, __u32 epoch)
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
	mask = bits(MAP(names), owner->path, epoch);
	place.dentry = parent_of(place.dentry);
	for (i = 0; i < DEPTH; i++) {
		if (climb(&place, &end)) {
			if (end)
				return mask | by_path(owner, asks, epoch);
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

/* uid, gid and supplementary groups, of which GROUPS are looked at. */
static __always_inline __u64 by_user(struct task_struct *task, struct owner *owner, __u32 epoch)
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
	mask = bits(MAP(uids), &owner->uid, epoch) | bits(MAP(gids), &owner->gid, epoch);
	for (i = 0; i < GROUPS; i++) {
		if (i >= count)
			break;
		if (bpf_probe_read_kernel(&gid, sizeof(gid), list + i * sizeof(gid)))
			break;
		mask |= bits(MAP(gids), &gid, epoch);
	}
	if (count > GROUPS)
		owner->flags |= GROUPS_INCOMPLETE;
	return mask;
}

static __always_inline __u64 observe(struct owner *owner, const struct asks *asks, __u32 epoch)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 mask = by_executable(task, owner, asks, epoch);

	return mask | by_user(task, owner, epoch);
}

/* The groups of the current task, for when userspace asks and it has ended. */
static __always_inline void keep_groups(__u64 *cookie)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct group_info *info = BPF_CORE_READ(task, cred, group_info);
	void *list = __builtin_preserve_access_index(&info->gid);
	__u32 zero = 0, count = BPF_CORE_READ(info, ngroups);
	__u64 size = (__u64)count * sizeof(__u32);
	struct members *kept = bpf_map_lookup_elem(MAP(empty), &zero);

	if (!kept || bpf_map_update_elem(MAP(members), cookie, kept, BPF_ANY))
		return;
	kept = bpf_map_lookup_elem(MAP(members), cookie);
	if (!kept)
		return;
	/* As in append(). */
	barrier_var(size);
	if (size > sizeof(kept->gids) || bpf_probe_read_kernel(kept->gids, size, list))
		return;
	kept->count = count;
	barrier();
	kept->filled = 1;
}

#endif
