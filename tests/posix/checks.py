"""What a faithful file system does, as a table of checks.

Each check is Python for an actor: it runs as a user in an empty directory ``d`` of that user's,
with everything of ``tests/support/actor_main.py`` at hand, and asserts. It must pass on the plain
directory; that validates the check. The idea of the table is hanwen/go-fuse's ``posixtest``.
"""

from __future__ import annotations

from tests.posix import attributes, content, locks, names

CHECKS: dict[str, str] = {
    **names.CHECKS,
    **attributes.CHECKS,
    **content.CHECKS,
    **locks.CHECKS,
}
