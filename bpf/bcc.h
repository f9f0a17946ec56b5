/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * For process.bpf.c as BCC compiles it where the program starts: without BTF the fields of a task are out of reach, and
 * kernel headers, which this does without, would give the offsets of their own kernel. Helpers alone are asked.
 *
 * The name of a thread (comm) is anybody's to set, so it neither proves nor rules out an executable. Of the user and the
 * group, helpers know the real ones; supplementary groups they do not know.
 */
#ifndef GATEWAY_BCC_H
#define GATEWAY_BCC_H

#include "process.h"

/* BCC names the sections by the functions. */
#undef SEC
#define SEC(NAME)

/* The loader makes the maps and says -DFD_settings=7. */
#define MAP(NAME) ((void *)bpf_pseudo_fd(BPF_PSEUDO_MAP_FD, FD_##NAME))

#define barrier_var(VAR) asm volatile("" : "+r"(VAR))

/* BCC declares it as 32 bits wide. */
#define bpf_get_socket_cookie(CTX) (((__u64 (*)(void *))BPF_FUNC_get_socket_cookie)(CTX))

/* process.bpf.c */
static __always_inline __u64 bits(void *map, void *key, __u32 epoch);

static __always_inline __u64 observe(struct owner *owner, const struct asks *asks, __u32 epoch)
{
	__u64 user = bpf_get_current_uid_gid();

	owner->uid = user;
	owner->gid = user >> 32;
	owner->flags = PATH_INCOMPLETE | NAME_INCOMPLETE | GROUPS_INCOMPLETE | REAL_USER;
	return bits(MAP(uids), &owner->uid, epoch) | bits(MAP(gids), &owner->gid, epoch);
}

static __always_inline void keep_groups(__u64 *cookie)
{
}

#endif
