"""Become another program that ends when the process that started this one does, however that ended.

    python dying_with_parent.py PARENT UID GID SIGNAL PROGRAM ARGUMENT...

The kernel sends the signal (PR_SET_PDEATHSIG of prctl(2)), so that a test process killed by SIGKILL leaves nothing.
Changing the user forgets that wish: therefore it is made here, afterwards, and not by who starts this.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, uid, gid, number = (int(argument) for argument in sys.argv[1:5])
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0 or os.getppid() != parent:
        sys.exit("the parent is gone already")
    os.execv(sys.argv[5], sys.argv[5:])


if __name__ == "__main__":
    main()
