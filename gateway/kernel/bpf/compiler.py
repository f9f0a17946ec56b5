"""Compiles a BPF program with BCC in a process of its own, so that LLVM's 120 MB are gone when it has done its work.

    python -I compiler.py SOURCE FLAGS... -- PROGRAM...

prints a JSON object: program -> its instructions in hex. Needs the ``bcc`` module (Debian: python3-bpfcc) and no kernel
headers: what BCC itself includes of them is written here, and the source reads no structure of the kernel's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

HEADERS = {
    "linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "linux/types.h": """
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __always_inline inline __attribute__((always_inline))
typedef signed char __s8, s8;
typedef unsigned char __u8, u8;
typedef short __s16, s16;
typedef unsigned short __u16, __be16, u16;
typedef int __s32, pid_t, s32;
typedef unsigned int __u32, __be32, __wsum, u32;
typedef long long __s64, s64;
typedef unsigned long long __u64, u64;
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;
""",
    # BCC writes it into a section that only kprobes before Linux 5.0 had to have right.
    "linux/version.h": """
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 14, 0)
""",
    # BCC brings the text of the first along under another name, and uses nothing of the others.
    "uapi/linux/bpf.h": "",
    "uapi/linux/if_packet.h": "",
    "linux/bpf_common.h": "",
    "linux/log2.h": "",
    "asm/page.h": "",
}


def main(words: list[str]) -> None:
    source, *flags = words[: words.index("--")]
    names = words[words.index("--") + 1 :]
    with tempfile.TemporaryDirectory(prefix="gateway-bcc-") as folder:
        for name, text in HEADERS.items():
            file = Path(folder, "include", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        os.environ["BCC_KERNEL_SOURCE"] = folder
        import bcc

        made = bcc.BPF(src_file=os.fsencode(source), cflags=flags)
        print(json.dumps({name: made.dump_func(name.encode()).hex() for name in names}))


if __name__ == "__main__":
    main(sys.argv[1:])
