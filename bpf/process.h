/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What process.bpf.c and gateway/kernel/bpf/record.py both know: keys, values, bounds. Change both together.
 */
#ifndef GATEWAY_PROCESS_H
#define GATEWAY_PROCESS_H

/* One path component with its NUL; a longer one makes the path incomplete. */
#define COMPONENT 64
/* Components leaf to root, each ended by a NUL, the rest zero. The last COMPONENT bytes are room for one more read. */
#define PATH 320
/* Steps of the walk: components and mount points. Each component takes two bytes at least, so few paths end here. */
#define DEPTH 48
/* Supplementary groups looked at; a process in more of them is left to userspace where a group is asked for. */
#define GROUPS 64
/* Supplementary groups kept for userspace; of a process in more of them, /proc tells. */
#define KEPT 32
#define COMM 16

/* gateway/kernel/mark.py */
#define SOCKET_SHIFT 27
#define BYTE 0xFF000000u
#define SOCKET 0xF8000000u
#define UNKNOWN 30u
#define OWN 31u

/* owner.flags */
#define PATH_INCOMPLETE 1u
#define NAME_INCOMPLETE 2u
#define GROUPS_INCOMPLETE 4u
/* uid and gid are the real ones, not those of file access. */
#define REAL_USER 8u
/* Userspace has not said yet which expressions hold for the path, which rules for the cgroup. */
#define PATH_UNJUDGED 16u
#define CGROUP_UNJUDGED 32u

/*
 * Bits that the plan gives to any path (by list or by expression), name, group, expression and cgroup: what is not known
 * of them matters where one of the bits is not set yet.
 */
struct asks {
	__u64 paths;
	__u64 names;
	__u64 gids;
	__u64 expressions;
	__u64 cgroups;
};

/* Element 0 of the array `settings`. A netns of 0 is nobody's: the programs then do nothing. */
struct settings {
	__u64 netns; /* cookie of the network namespace that is steered */
	__u32 epoch; /* number of the plan; its last bit says which half of each `sides` holds */
	__u32 pad;
	struct asks asks[2]; /* by the epoch's last bit */
};

/* Two plans at once: the one in force and the one before or after it. */
struct sides {
	__u64 of[2];
};

/* What userspace found out, by path or cgroup; of the plan of that epoch alone. */
struct learned {
	__u64 bits;
	__u32 epoch;
	__u32 pad;
};

/* Value of `owners`, by socket cookie. */
struct owner {
	char path[PATH];
	char comm[COMM];
	__u32 tgid;
	__u32 uid;
	__u32 gid;
	__u32 flags;
	__u64 cgroup; /* id in cgroup2: never used again, and a cgroup keeps its path */
};

/* Value of `members`, by socket cookie: supplementary groups of the owner. */
struct members {
	__u32 filled; /* 0: not yet, or too many */
	__u32 count;
	__u32 gids[KEPT];
};

#endif
