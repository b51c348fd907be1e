"""A seccomp filter for the sandbox: threads may be started, processes may not.

A limit of processes does not hold for root, even in a user namespace, so new processes are refused by the kernel's
filter of system calls, a classic BPF program over (number, architecture, arguments). x86_64 and aarch64.
"""

from __future__ import annotations

import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EAGAIN, _ENOSYS = 11, 38
_CLONE_THREAD = 0x10000
_CLONE3 = 435
_X32 = 0x40000000  # other numbers for the same calls, on x86_64

_CALLS = {"x86_64": (0xC000003E, 56, (57, 58)), "aarch64": (0xC00000B7, 220, ())}
"""Audit number, clone, and other calls that make processes."""


def no_processes(machine: str) -> bytes | None:
    """The filter as an array of sock_filter; None for a machine (`platform.machine()`) that it does not know.

    clone3, whose flags a filter cannot read, is said not to exist: the C library then calls clone.
    """
    if machine not in _CALLS:
        return None
    audit, clone, others = _CALLS[machine]
    rules = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    rules += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    rules += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERROR | _ENOSYS)]
    for call in others:
        rules += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ERROR | _EAGAIN)]
    rules += [(_EQUAL, 1, 0, clone), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    rules += [(_ANY_BIT, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | _EAGAIN)]
    return b"".join(struct.pack("HBBI", code, then, otherwise, value) for code, then, otherwise, value in rules)
