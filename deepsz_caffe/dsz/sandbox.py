"""What a process that decodes a stranger's file gives up, so that code in the file gains nothing.

Linux only, and each part only where the kernel has it; `confine` says which parts hold:

- *no new privileges*: no set-user-id program can be used (Linux 3.5);
- *system calls*: a seccomp filter allows what decoding takes, which is memory, threads, and reading
  and writing what is open already. Nothing can be opened or run, no socket made, no other process
  seen but for the size and times of files (Linux 3.5, x86-64 and ARM64);
- *files*: Landlock refuses every path, and from version 4 on TCP as well (Linux 5.13). It holds on
  machines whose system calls are not listed here.

All of it is the kernel's own interface by ctypes: no library that the decoder would need.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct

_SIGNAL_AT_PARENTS_END, _NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 1, 38, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # the same on every machine
_LANDLOCK_VERSION = 1
#: Landlock's version -> how many of its rights over files it knows, from the first on
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_NOW = 16
_TCP_RIGHTS, _ALL_SCOPES = 0b11, 0b11

# A filter's instructions, verdicts, and where it finds what: linux/filter.h, linux/seccomp.h
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_THREAD, _DUPLICATE = 0x00010000, 1030  # clone's flag, fcntl's command for a map's descriptor
#: machine -> its AUDIT_ARCH, and the numbers of the calls that decoding makes
_CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9,
            "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
            "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20,
            "sched_yield": 24, "mremap": 25, "msync": 26, "madvise": 28, "dup": 32,
            "nanosleep": 35, "getpid": 39, "clone": 56, "exit": 60, "uname": 63, "fcntl": 72,
            "ftruncate": 77, "getrusage": 98, "sysinfo": 99, "getuid": 102, "sigaltstack": 131,
            "fstatfs": 138,
            "gettid": 186, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219,
            "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234,
            "newfstatat": 262, "set_robust_list": 273, "fallocate": 285, "prlimit64": 302,
            "getrandom": 318, "membarrier": 324, "rseq": 334, "clone3": 435,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "dup": 23, "fcntl": 25, "fstatfs": 44, "ftruncate": 46, "fallocate": 47, "close": 57,
            "lseek": 62,
            "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68,
            "ppoll": 73, "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98,
            "set_robust_list": 99, "nanosleep": 101, "clock_gettime": 113, "clock_nanosleep": 115,
            "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "tgkill": 131,
            "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139,
            "uname": 160, "getrusage": 165, "getpid": 172, "getuid": 174, "gettid": 178,
            "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216, "clone": 220, "mmap": 222,
            "mprotect": 226, "msync": 227, "madvise": 233, "prlimit64": 261, "getrandom": 278,
            "membarrier": 283, "rseq": 293, "clone3": 435,
        },
    ),
}  # fmt: skip


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the one that started it has ended, however it did.

    Parameters
    ----------
    parent
        Process id of the one that started this.
    """
    if _prctl(_SIGNAL_AT_PARENTS_END, signal.SIGKILL) and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)  # it had ended before


def confine() -> list[str]:
    """Give up all but memory, threads and what is open now; there is no way back.

    Returns
    -------
    list of str
        What holds from now on, of "no new privileges", "files" and "system calls".
    """
    parts = (
        ("no new privileges", lambda: _prctl(_NO_NEW_PRIVILEGES, 1)),
        ("files", _refuse_files),
        ("system calls", _filter_calls),
    )
    return [name for name, gives_up in parts if gives_up()]  # type: ignore[no-untyped-call]


def _prctl(option: int, argument: int, more: object = None) -> bool:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "prctl"):
        return False
    unused = ctypes.c_ulong(0)
    return bool(libc.prctl(option, ctypes.c_ulong(argument), more or unused, unused, unused) == 0)


def _refuse_files() -> bool:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "syscall"):
        return False
    number, size = ctypes.c_long, ctypes.c_size_t
    version = libc.syscall(number(_LANDLOCK_CREATE), None, size(0), _LANDLOCK_VERSION)
    if version < 1:
        return False
    files = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS_NOW)) - 1
    rules = struct.pack("=Q", files)
    if version >= 4:
        rules += struct.pack("=Q", _TCP_RIGHTS)
    if version >= 6:
        rules += struct.pack("=Q", _ALL_SCOPES)
    ruleset = libc.syscall(number(_LANDLOCK_CREATE), rules, size(len(rules)), 0)
    if ruleset < 0:
        return False
    # Without a single rule: every right that the set knows is refused everywhere.
    refused = libc.syscall(number(_LANDLOCK_RESTRICT), ruleset, 0) == 0
    os.close(ruleset)
    return bool(refused)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _filter_calls() -> bool:
    if platform.machine() not in _CALLS or struct.calcsize("P") != 8:
        return False
    program = _program(*_CALLS[platform.machine()], os.getpid())
    memory = ctypes.create_string_buffer(program, len(program))
    packed = _Program(len(program) // 8, ctypes.addressof(memory))
    return _prctl(_SECCOMP, _FILTER, ctypes.byref(packed))


def _program(machine: int, calls: dict[str, int], process: int) -> bytes:
    """Assemble the filter: the calls listed are allowed, all others fail with EPERM."""

    def step(code: int, value: int, equal: int = 0, other: int = 0) -> bytes:
        return struct.pack("=HBBI", code, equal, other, value)

    def only_with(argument: bytes, value: int) -> bytes:
        return argument + step(_EQUAL, value, 0, 1) + step(_RETURN, _ALLOW)

    first, second = (step(_LOAD, _FIRST_ARGUMENT + 8 * which) for which in range(2))
    # Its flags lie in memory, where a filter can't see them: told that it is unknown, the C library
    # uses clone, which may make threads. Signals and limits may be this process's own alone.
    special = {
        "clone3": step(_RETURN, _ERROR | _ENOSYS),
        "clone": only_with(first + step(_AND, _THREAD), _THREAD),
        "tgkill": only_with(first, process),
        "prlimit64": only_with(first, 0),
        "fcntl": only_with(second, _DUPLICATE),
    }
    refuse = step(_RETURN, _ERROR | _EPERM)
    program = step(_LOAD, _MACHINE) + step(_EQUAL, machine, 1, 0) + step(_RETURN, _KILL)
    program += step(_LOAD, _NUMBER)
    for name, number in calls.items():
        verdict = special[name] + refuse if name in special else step(_RETURN, _ALLOW)
        program += step(_EQUAL, number, 0, len(verdict) // 8) + verdict
    return program + refuse
