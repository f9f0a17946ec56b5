"""A thin ctypes loader over ``libbpf.so.1`` (1.0 and later): open, choose programs, load, maps, attach to a cgroup.

It is not a binding of the whole library. Every link and map is held by this process alone (nothing is pinned), so the
kernel detaches all of it when the process ends, however it ends. File descriptors of bpf(2) are close-on-exec.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections import deque
from collections.abc import Iterator
from ctypes import CFUNCTYPE, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from types import TracebackType

from gateway.core.errors import KernelError
from gateway.kernel.bpf import syscall
from gateway.kernel.bpf.syscall import Map

OBJECTS = Path(__file__).parent / "objects"
LOG_LINES = 12
"""How much of the end of libbpf's and the verifier's log goes into an error."""

LOG_BYTES = 1 << 21

PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "bpf_object__open_file": (c_void_p, (c_char_p, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__attach_cgroup": (c_void_p, (c_void_p, c_int)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "libbpf_set_print": (c_void_p, (PRINT,)),
}

_log: deque[str] = deque(maxlen=400)


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf with its log captured. Raises KernelError where it is not installed or older than 1.0, and after
    ``syscall.forbid``."""
    syscall.allowed()
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError("open libbpf.so.1", 0, f"{error} (Debian package libbpf1)") from error
    for name, (result, arguments) in SIGNATURES.items():
        try:
            function = getattr(lib, name)
        except AttributeError as error:
            raise KernelError("open libbpf.so.1", 0, f"it has no {name}") from error
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(_PRINTER)
    return lib


def _format() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None).vsnprintf
    function.restype, function.argtypes = c_int, (c_void_p, c_size_t, c_char_p, c_void_p)
    return function


_vsnprintf = _format()


def _capture(level: int, form: bytes, arguments: int) -> int:
    if level:  # LIBBPF_WARN is 0; a load that fails logs its verifier output there
        return 0
    # The verifier's log comes as one message, and what was refused stands at its end.
    buffer = ctypes.create_string_buffer(LOG_BYTES)
    length: int = _vsnprintf(buffer, LOG_BYTES, form, arguments)
    _log.extend(buffer.value.decode(errors="replace").splitlines())
    return length


_PRINTER = PRINT(_capture)
"""Kept alive: libbpf calls it as long as the process lives."""


class Object:
    """One ``.bpf.o``: open, then ``load``, then maps and attachments. ``close`` undoes all of it, any number of times.

    ``without`` names programs that are not loaded. Raises KernelError, with the end of the log, from every step.
    """

    def __init__(self, path: Path, without: frozenset[str] = frozenset()) -> None:
        self.path = path
        self._lib = library()
        self._links: list[int] = []
        _log.clear()
        self._object: int | None = None
        if not path.is_file():
            raise KernelError(f"open {path.name}", 0, "not built (make -C bpf)")
        ctypes.set_errno(0)
        self._object = self._lib.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise self._refusal(f"open {path.name}", ctypes.get_errno())
        self.programs = tuple(self._names())
        for name in without:
            self._lib.bpf_program__set_autoload(self._program(name), False)

    def _names(self) -> Iterator[str]:
        program = self._lib.bpf_object__next_program(self._object, None)
        while program:
            yield self._lib.bpf_program__name(program).decode()
            program = self._lib.bpf_object__next_program(self._object, program)

    def _program(self, name: str) -> int:
        program: int | None = self._lib.bpf_object__find_program_by_name(self._object, name.encode())
        if not program:
            raise KernelError(f"{self.path.name}: program {name}", 0, "there is none")
        return program

    def _refusal(self, op: str, errno: int) -> KernelError:
        lines = [line.rstrip() for line in _log if line.strip()]
        return KernelError(op, errno, "\n  ".join(["", *lines[-LOG_LINES:]]) if lines else "")

    def load(self) -> None:
        """Maps and programs into the kernel: all or none."""
        _log.clear()
        code = self._lib.bpf_object__load(self._object)
        if code:
            raise self._refusal(f"load {self.path.name}", -code)

    def map(self, name: str) -> Map:
        found = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise KernelError(f"{self.path.name}: map {name}", 0, "there is none")
        sizes = self._lib.bpf_map__key_size(found), self._lib.bpf_map__value_size(found)
        return Map(name, self._lib.bpf_map__fd(found), *sizes)

    def program(self, name: str) -> int:
        """Its descriptor, which belongs to this object."""
        fd: int = self._lib.bpf_program__fd(self._program(name))
        return fd

    def attach_cgroup(self, name: str, cgroup_fd: int) -> None:
        """Attach program ``name`` beside whatever is attached there already (BPF_F_ALLOW_MULTI of links)."""
        _log.clear()
        ctypes.set_errno(0)
        link: int | None = self._lib.bpf_program__attach_cgroup(self._program(name), cgroup_fd)
        if not link:
            raise self._refusal(f"attach {name} to the cgroup", ctypes.get_errno())
        self._links.append(link)

    @property
    def links(self) -> tuple[int, ...]:
        """Descriptors of the attachments: whoever has copies of them keeps the programs attached."""
        return tuple(self._lib.bpf_link__fd(link) for link in self._links)

    def close(self) -> None:
        while self._links:
            self._lib.bpf_link__destroy(self._links.pop())
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None

    def __enter__(self) -> Object:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
