"""The backing: the real spool directory, and the only code that touches it.

- `door`: every path operation, relative to one descriptor, links never followed.
- `dotlock`, `kernel_locks`: the two ways to lock a real mailbox against programs outside the mount.
- `foreign`: what a lock file that is not ours means, and when it may be removed.
- `spool_watch`: being told when a lock file disappears.
- `backing_lock`: all of that as one lock per mailbox, which the locking core asks for;
  `backing_locks`: all mailboxes' locks, and what keeps the held ones fresh.

Paths are tuples of bytes below the spool's root (`door.Path`).
"""
