"""The extent map against an array of bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mailfs.sessions.extents import Extents
from mailfs.sessions.staging import Staging
from tests.sessions.fakes import FakeJournal

OFFSETS = st.integers(0, 60)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), OFFSETS, st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("cut"), OFFSETS, st.just(b"")),
        st.tuples(st.just("shift"), st.integers(0, 9), st.just(b"")),
    ),
    max_size=30,
)


@given(STEPS, OFFSETS, OFFSETS)
def test_map_is_an_array_of_bytes(
    steps: list[tuple[str, int, bytes]], start: int, length: int
) -> None:
    extents, model = Extents(), dict[int, int]()
    staging = Staging(32, FakeJournal().slot)
    for what, number, data in steps:
        if what == "write":
            extents.put(number, len(data), staging.append(data))
            model.update({number + i: byte for i, byte in enumerate(data)})
        elif what == "cut":
            extents.cut(number)
            model = {at: byte for at, byte in model.items() if at < number}
        else:
            extents.shift(number)
            model = {at + number: byte for at, byte in model.items()}
    assert extents.lowest == min(model, default=None)
    ends = [(e.start, e.end) for e in extents]
    assert all(a < b for a, b in ends)
    assert all(first[1] <= then[0] for first, then in itertools.pairwise(ends))
    at = start
    for piece in extents.pieces(start, start + length):
        assert piece.start == at
        at = piece.end
        expected = [model.get(i) for i in range(piece.start, piece.end)]
        if piece.position is None:
            assert expected == [None] * len(expected)
        else:
            assert expected == list(staging.read(piece.position, piece.end - piece.start))
    assert at == start + length


def test_a_long_row_of_writes_is_one_extent() -> None:
    extents = Extents()
    for i in range(1000):
        extents.put(i * 10, 10, i * 10)
    assert len(extents) == 1
