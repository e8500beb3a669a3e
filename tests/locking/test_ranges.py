"""Byte ranges against the plainest model there is: one mode for each byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.errors import Cause, Refused
from mailfs.locking import Mode
from mailfs.locking.ranges import MAX_RANGES, OFFSET_MAX, Range, carve, clash, strongest

SIZE = 24
modes = st.sampled_from([Mode.READ, Mode.APPEND, Mode.WRITE])
bounds = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)).map(sorted)


@given(st.lists(st.tuples(st.none() | modes, bounds), max_size=12), modes, bounds)
def test_like_bytes(
    steps: list[tuple[Mode | None, list[int]]], probe: Mode, where: list[int]
) -> None:
    held: list[Range] = []
    model: list[Mode | None] = [None] * SIZE
    for mode, (start, end) in steps:
        held = carve(held, mode, start, end)
        model[start : end + 1] = [mode] * (end - start + 1)
        flat: list[Mode | None] = [None] * SIZE
        for piece in held:
            assert flat[piece.start : piece.end + 1] == [None] * (piece.end - piece.start + 1)
            flat[piece.start : piece.end + 1] = [piece.mode] * (piece.end - piece.start + 1)
        assert flat == model
        assert held == sorted(held)
        for one, two in pairwise(held):
            assert one.end + 1 < two.start or one.mode is not two.mode, "neighbours are merged"
    start, end = where
    hit = clash(held, probe, start, end)
    clashing = [b for b in range(start, end + 1) if (m := model[b]) and m.conflicts(probe)]
    assert (hit is not None) == bool(clashing)
    if hit is not None:
        assert hit.start <= clashing[0] <= hit.end
    kinds = {m for m in model if m}
    assert strongest(held) == (Mode.WRITE if len(kinds) > 1 else max(kinds, default=None))


def test_up_to_the_last_offset() -> None:
    held = carve([], Mode.WRITE, 0, OFFSET_MAX)
    held = carve(held, None, OFFSET_MAX, OFFSET_MAX)
    assert held == [Range(0, OFFSET_MAX - 1, Mode.WRITE)]
    held = carve(held, Mode.WRITE, OFFSET_MAX, OFFSET_MAX)
    assert held == [Range(0, OFFSET_MAX, Mode.WRITE)]


def test_nobody_fills_memory() -> None:
    held: list[Range] = [Range(2 * i, 2 * i, Mode.READ) for i in range(MAX_RANGES)]
    with pytest.raises(Refused) as refused:
        carve(held, Mode.READ, 2 * MAX_RANGES, 2 * MAX_RANGES)
    assert refused.value.cause is Cause.TOO_MANY_WAITERS
    whole = carve(held, Mode.WRITE, 0, OFFSET_MAX)
    assert len(whole) == 1
