"""``cgroup``: path of a cgroup of version 2, as its mount shows it, that the socket's owner is in or below. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.core.flow import lineage
from gateway.route.item.base import TextItem, texts

if TYPE_CHECKING:
    from gateway.route.match import Subject


class Cgroup(TextItem):
    __slots__ = ()
    key = "cgroup"

    @classmethod
    def parse(cls, value: Any) -> Cgroup:
        return cls(frozenset(map(_path, texts(value))))

    def match(self, subject: Subject) -> bool:
        process = subject.process
        return process is not None and not self.set.isdisjoint(lineage(process.cgroup))


def _path(text: str) -> str:
    """``text`` as the kernel writes it. Raises ValueError."""
    parts = text.rstrip("/").split("/")
    if not text.startswith("/"):
        raise ValueError(f'"{text}" is no path; write "/{text}", as the line 0:: of /proc/PID/cgroup has it')
    if parts[1:3] == ["sys", "fs"]:
        raise ValueError(f'"{text}" begins with a mount point; write what stands behind it')
    if any(part in ("", ".", "..") for part in parts[1:]):
        raise ValueError(f'"{text}" is not written as the kernel does, without "//", "." and ".."')
    return "/".join(parts) or "/"
