"""`python without_io_uring.py COMMAND...`: the command where no process gets io_uring.

As in a container whose seccomp profile leaves it out: io_uring_setup(2) fails with EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

IO_URING_SETUP = 425
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
# linux/bpf_common.h: load a word of seccomp_data, compare, return.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06


def forbid_io_uring() -> None:
    """For this process and its descendants, for ever (seccomp(2))."""
    instructions = [
        (LOAD, 0, 0, 0),  # The number of the system call is seccomp_data's first word.
        (JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EPERM),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    packed = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    code = ctypes.create_string_buffer(packed)
    program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0)),
        (PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program),
    ):
        if prctl(*arguments, ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid_io_uring()
    os.execvp(sys.argv[1], sys.argv[1:])
