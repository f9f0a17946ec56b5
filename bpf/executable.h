/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The path of an executable, read from its dentries: no d_path (refused in cgroup hooks), no race with exec.
 *
 * The scratch space is the program's own stack: cgroup programs can be preempted by each other, so a per-CPU buffer
 * would mix two paths.
 */
#ifndef GATEWAY_EXECUTABLE_H
#define GATEWAY_EXECUTABLE_H

#include "process.h"

struct place {
	struct dentry *dentry;
	struct mount *mount;
};

static __always_inline struct mount *mount_of(struct vfsmount *mnt)
{
	return (void *)mnt - bpf_core_field_offset(struct mount, mnt);
}

/*
 * Append the name of `dentry` at path[at]. Returns the offset behind its NUL, or 0 where it does not fit or cannot be
 * read.
 */
static __always_inline __u64 append(char *path, __u64 at, struct dentry *dentry)
{
	const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
	__u32 length = BPF_CORE_READ(dentry, d_name.len);
	long n;

	if (length >= COMPONENT)
		return 0;
	/* Tested next to its use on the same register, so that every verifier sees the bound. */
	barrier_var(at);
	if (at > PATH - COMPONENT)
		return 0;
	n = bpf_probe_read_kernel_str(path + at, COMPONENT, name);
	if (n <= 1 || n > COMPONENT)
		return 0;
	return at + n;
}

static __always_inline struct dentry *parent_of(struct dentry *dentry)
{
	return BPF_CORE_READ(dentry, d_parent);
}

/*
 * At the root of a mount: go on at its mount point and return 1. Return 0 elsewhere. Sets *end at the root of
 * everything.
 */
static __always_inline int climb(struct place *place, int *end)
{
	struct mount *mount = place->mount, *parent;

	if (place->dentry != BPF_CORE_READ(mount, mnt.mnt_root))
		return 0;
	parent = BPF_CORE_READ(mount, mnt_parent);
	*end = !parent || parent == mount;
	place->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
	place->mount = parent;
	return 1;
}

/* Where the walk begins; 0 for a task without an executable (a kernel thread). */
static __always_inline int executable(struct task_struct *task, struct place *place)
{
	struct file *file = BPF_CORE_READ(task, mm, exe_file);

	if (!file)
		return 0;
	place->dentry = BPF_CORE_READ(file, f_path.dentry);
	place->mount = mount_of(BPF_CORE_READ(file, f_path.mnt));
	return 1;
}

#endif
