"""Programs of different protocols exclude each other; within one protocol all is as on a local
directory.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import Actor, until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

PROTOCOLS = ("flock", "fcntl", "ofd", "dotlock", "dotlock-link")
REFUSAL = {
    "flock": {errno.EWOULDBLOCK},
    "flock-sh": {errno.EWOULDBLOCK},
    "fcntl": {errno.EAGAIN, errno.EACCES},
    "fcntl-r": {errno.EAGAIN, errno.EACCES},
    "ofd": {errno.EAGAIN},
    "dotlock": {errno.EEXIST},
    "dotlock-link": {errno.EEXIST},
}
# Which protocols meet on a local file system: each with itself, both dotlocks, POSIX with OFD
# locks.
_FAMILY = {"dotlock-link": "dotlock", "ofd": "fcntl", "flock-sh": "flock", "fcntl-r": "fcntl"}


def waits(protocol: str) -> bool:
    """Whether the protocol has a waiting request at all."""
    return not protocol.startswith("dotlock")


def family(protocol: str) -> str:
    return _FAMILY.get(protocol, protocol)


def taken(actor: Actor, protocol: str, path: str) -> bool:
    """Try to take a lock without waiting; a refusal must be the protocol's own."""
    number = actor.errno(f"lock({protocol!r}, {path!r})")
    assert number == 0 or number in REFUSAL[protocol], errno.errorcode.get(number, number)
    return number == 0


def free(actor: Actor, path: str) -> bool:
    """Whether a mailbox can be locked now; leaves it unlocked."""
    if taken(actor, "flock", path):
        actor.do(f"unlock('flock', {path!r})")
        return True
    return False


def contend(place: Place, user: User, holder: str, contender: str) -> None:
    """One program holds, another is refused; and waits, if its protocol can; and gets it
    afterwards.
    """
    path = place.path(user)
    first, second = place.crew.actor(user), place.crew.actor(user)
    first.do(f"lock({holder!r}, {path!r})")
    for _ in range(2):
        assert not taken(second, contender, path), f"{contender} got what {holder} holds"
    if waits(contender):
        second.start(f"lock({contender!r}, {path!r}, wait=True)")
        assert second.busy(0.3), f"{contender} does not wait for {holder}: {second.result()}"
        first.do(f"unlock({holder!r}, {path!r})")
        second.result(1.0)
    else:
        first.do(f"unlock({holder!r}, {path!r})")
        until(lambda: taken(second, contender, path), 1.0, f"{contender} after {holder}")
    assert not taken(first, holder, path), f"{holder} got what {contender} holds"
    second.do(f"unlock({contender!r}, {path!r})")
    until(lambda: taken(first, holder, path), 1.0, f"{holder} again")
    first.do(f"unlock({holder!r}, {path!r})")


@pytest.mark.parametrize(
    ("holder", "contender"),
    [(a, b) for a, b in itertools.product(PROTOCOLS, PROTOCOLS) if family(a) == family(b)],
)
def test_within_a_protocol(place: Place, alice: User, holder: str, contender: str) -> None:
    contend(place, alice, holder, contender)


def test_across_protocols(mail: Place, alice: User, bob: User) -> None:
    for holder, contender in itertools.product(PROTOCOLS, PROTOCOLS):
        if family(holder) != family(contender):
            contend(mail, alice, holder, contender)
    assert free(mail.crew.actor(bob), mail.path(bob))


@pytest.mark.parametrize("protocol", ["flock-sh", "fcntl-r"])
def test_shared_locks_share(place: Place, alice: User, protocol: str) -> None:
    path = place.path(alice)
    one, two, three = (place.crew.actor(alice) for _ in range(3))
    exclusive = {"flock-sh": "flock", "fcntl-r": "fcntl"}[protocol]
    assert taken(one, protocol, path)
    assert taken(two, protocol, path)
    assert not taken(three, exclusive, path)
    one.do(f"unlock({protocol!r}, {path!r})")
    assert not taken(three, exclusive, path)
    two.do(f"unlock({protocol!r}, {path!r})")
    until(lambda: taken(three, exclusive, path), 1.0, "exclusive after the last shared")


def test_shared_locks_share_across_protocols(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    one, two, three = (mail.crew.actor(alice) for _ in range(3))
    assert taken(one, "flock-sh", path)
    assert taken(two, "fcntl-r", path)
    for protocol in PROTOCOLS:
        assert not taken(three, protocol, path), protocol


def test_getlk_within_fcntl(place: Place, alice: User) -> None:
    path = place.path(alice)
    one, two = place.crew.actor(alice), place.crew.actor(alice)
    assert two.do(f"getlk({path!r})")[0] == fcntl.F_UNLCK
    one.do(f"lock('fcntl', {path!r})")
    assert two.do(f"getlk({path!r})") == (fcntl.F_WRLCK, one.pid)
    assert one.do(f"fcntl_lock(held['fcntl', {path!r}], fcntl.F_WRLCK, fcntl.F_GETLK)[0]") == (
        fcntl.F_UNLCK
    )


@pytest.mark.parametrize("holder", ["flock", "dotlock", "ofd"])
def test_getlk_across_protocols(mail: Place, alice: User, holder: str) -> None:
    path = mail.path(alice)
    one, two = mail.crew.actor(alice), mail.crew.actor(alice)
    one.do(f"lock({holder!r}, {path!r})")
    assert two.do(f"getlk({path!r})")[0] == fcntl.F_WRLCK
    one.do(f"unlock({holder!r}, {path!r})")
    until(lambda: two.do(f"getlk({path!r})")[0] == fcntl.F_UNLCK, 1.0, "free")


def test_a_program_may_use_all_protocols(place: Place, alice: User) -> None:
    """Within one program nothing conflicts, in any order, as mail programs do it."""
    path = place.path(alice)
    actor, other = place.crew.actor(alice), place.crew.actor(alice)
    for order in itertools.permutations(("dotlock", "fcntl", "flock")):
        for protocol in order:
            assert taken(actor, protocol, path), (order, protocol)
        assert not free(other, path)
        for protocol in order:
            actor.do(f"unlock({protocol!r}, {path!r})")
        until(lambda: free(other, path), 1.0, "free for another")


def test_a_second_exclusive_create_is_refused_to_the_holder_too(place: Place, alice: User) -> None:
    actor = place.crew.actor(alice)
    assert taken(actor, "dotlock", place.path(alice))
    assert not taken(actor, "dotlock", place.path(alice))
    assert not taken(actor, "dotlock-link", place.path(alice))


def test_mailboxes_do_not_disturb_each_other(place: Place, alice: User, bob: User) -> None:
    one, two = place.crew.actor(alice), place.crew.actor(bob)
    for protocol in ("dotlock", "fcntl", "flock"):
        assert taken(one, protocol, place.path(alice))
        assert taken(two, protocol, place.path(bob))


def test_waiters_are_served_in_turn(mail: Place, alice: User) -> None:
    """First come, first served, whatever protocol each waits by (design 4.3)."""
    path = mail.path(alice)
    holder = mail.crew.actor(alice)
    holder.do(f"lock('dotlock', {path!r})")
    waiters = []
    for protocol in ("flock", "fcntl", "ofd", "fcntl", "flock"):
        actor = mail.crew.actor(alice)
        actor.start(f"lock({protocol!r}, {path!r}, wait=True)")
        assert actor.busy(0.15)
        waiters.append((actor, protocol))
    holder.do(f"unlock('dotlock', {path!r})")
    while waiters:
        actor, protocol = waiters.pop(0)
        actor.result(1.0)
        assert all(other.busy(0.05) for other, _ in waiters), "two hold it at once"
        actor.do(f"unlock({protocol!r}, {path!r})")


def test_a_cycle_of_waiters_is_found(mail: Place, alice: User) -> None:
    """Two programs, two mailboxes, two protocols: one of them is told (design 4.3)."""
    path, other = mail.path(alice), str(mail.dir / f"{alice.name}.second")
    (mail.spool / f"{alice.name}.second").touch()
    mail.crew.ok(["chown", alice.name, mail.spool / f"{alice.name}.second"])
    one, two = mail.crew.actor(alice), mail.crew.actor(alice)
    one.do(f"lock('fcntl', {path!r})")
    two.do(f"lock('fcntl', {other!r})")
    one.start(f"lock('fcntl', {other!r}, wait=True)")
    assert one.busy(0.2)
    assert two.errno(f"lock('fcntl', {path!r}, wait=True)", 2.0) == errno.EDEADLK
    two.do(f"unlock('fcntl', {other!r})")
    one.result(1.0)
