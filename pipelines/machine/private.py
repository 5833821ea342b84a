"""Other users of the machine: what this process and its children make is closed to them. Linux, stdlib.

The umask alone is not enough: Triton's shared memory is made with `fchmod`, which no umask bounds.
A filter of the kernel is for that, in what `os.fork` starts, with which PyTriton starts Triton. `subprocess`
does without `os.fork`, so its children may set any mode.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import struct
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OWNER_ONLY = 0o077
# From linux/prctl.h, linux/seccomp.h, linux/audit.h, and the tables of system calls: machine → its audit
# number, and its numbers of `seccomp` and `fchmod`. PyTriton has wheels for these two.
PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER, SPEC_ALLOW = 38, 1, 4
CALLS = {"x86_64": (0xC000003E, 317, 91), "aarch64": (0xC00000B7, 277, 52)}
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_AT, MACHINE_AT = 0, 4
SUCCEEDS_UNDONE, ALLOWED = 0x00050000, 0x7FFF0000
LEFT_OPEN = "while Triton starts, other users of this machine may open its shared memory"
log = logging.getLogger("trivid")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def keep_private() -> None:
    """Files are made for their owner alone from now on; after `os.fork`, `fchmod` does nothing in the child.

    Where the kernel has no such filter, which is logged, `close_to_others` is what is left.
    """
    os.umask(OWNER_ONLY)
    if platform.machine() in CALLS:
        _filter_in_children(*CALLS[platform.machine()])


def _filter_in_children(machine: int, seccomp: int, fchmod: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    steps = (
        (LOAD, 0, 0, MACHINE_AT),
        (IF_EQUAL, 0, 3, machine),
        (LOAD, 0, 0, NUMBER_AT),
        (IF_EQUAL, 0, 1, fchmod),
        (RETURN, 0, 0, SUCCEEDS_UNDONE),
        (RETURN, 0, 0, ALLOWED),
    )
    program = _Program(len(steps), b"".join(struct.pack("HBBI", *step) for step in steps))

    def add_filter() -> int:
        """Filter what this thread calls, and what it starts; 0, or the number of the error."""
        # SPEC_ALLOW: else older kernels slow the process down.
        call = (seccomp, SECCOMP_SET_MODE_FILTER, SPEC_ALLOW, ctypes.byref(program))
        failed = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(*call)
        return ctypes.get_errno() if failed else 0

    # Tried in a thread, with which the filter ends: a child could not tell.
    with ThreadPoolExecutor(1) as trial:
        number = trial.submit(add_filter).result()
    if number:
        log.warning("no filter of system calls (%s): %s", os.strerror(number), LEFT_OPEN)
    os.register_at_fork(after_in_child=add_filter)


def cache_folder(name: str, prefix: str) -> Path:
    """A folder of this user's alone that lasts; without a home, a new one in the temp folder, `prefix`….

    Raises OSError if there is no room for either.
    """
    with contextlib.suppress(OSError):
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = Path(base, "trivid", name)
        # A user without a home stays "~".
        if folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            if os.access(folder, os.W_OK):
                return folder
    return Path(tempfile.mkdtemp(prefix=prefix))


def close_to_others(files: Iterable[Path]) -> None:
    """Take from others what rights to these files they have; a file that is gone is left out."""
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            if (mode := file.stat().st_mode) & OWNER_ONLY:
                file.chmod(mode & ~OWNER_ONLY & 0o777)
