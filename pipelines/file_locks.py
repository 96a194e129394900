"""Locks on files, which end with the process that holds them: where the file system has any."""

from __future__ import annotations

import errno
import fcntl

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without locks answers: Lustre mounted without -o flock, NFS without a lock server."""


def lock(descriptor: int, operation: int) -> None:
    """As `fcntl.flock`; does nothing where there are no locks, as behind a URL.

    Raises:
        BlockingIOError: another process holds it, with LOCK_NB.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
