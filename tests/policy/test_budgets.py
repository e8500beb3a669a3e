from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.errors import Cause, Refused
from mailfs.policy.budgets import Budget


def test_one_users_limit_is_not_anothers() -> None:
    budget = Budget("scratch files", 2)
    budget.take(1001)
    budget.take(1001)
    with pytest.raises(Refused, match="scratch files: uid 1001 has 2 of 2") as refused:
        budget.take(1001)
    assert refused.value.cause is Cause.BUDGET
    budget.take(1002, 2)
    budget.give(1001)
    budget.take(1001)
    assert budget.used(1001) == 2


def test_all_or_nothing() -> None:
    budget = Budget("bytes", 100)
    budget.take(1, 60)
    with pytest.raises(Refused):
        budget.take(1, 41)
    assert budget.used(1) == 60
    budget.take(1, 40)
    budget.take(1, 0)


def test_exempt_users_are_counted() -> None:
    budget = Budget("handles", 1, exempt={0})
    budget.take(0, 1000)
    assert budget.used(0) == 1000
    assert budget.usage().used == {0: 1000}


def test_our_own_mistakes_are_noticed() -> None:
    budget = Budget("handles", 10)
    budget.take(1)
    for amount in (2, -1):
        with pytest.raises(ValueError, match="handles"):
            budget.give(1, amount)
    with pytest.raises(ValueError, match="handles"):
        budget.take(1, -1)
    assert budget.used(1) == 1


def test_usage_is_a_copy_and_forgets_who_has_nothing() -> None:
    budget = Budget("handles", 3)
    budget.take(1, 3)
    before = budget.usage()
    with pytest.raises(Refused):
        budget.take(1)
    budget.give(1, 3)
    with pytest.raises(Refused):
        budget.take(2, 4)
    after = budget.usage()
    assert (before.name, before.limit, before.used, before.refused) == ("handles", 3, {1: 3}, 0)
    assert (after.used, after.refused) == ({}, 2)
    assert repr(budget) == "<budget handles: 0 users, limit 3>"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.booleans())))
def test_never_above_the_limit_and_nothing_is_lost(steps: list[tuple[int, int, bool]]) -> None:
    budget = Budget("things", 7, exempt={0})
    held = {0: 0, 1: 0, 2: 0}
    for uid, amount, take in steps:
        if take:
            try:
                budget.take(uid, amount)
            except Refused:
                assert uid
                assert held[uid] + amount > 7
            else:
                held[uid] += amount
        elif amount <= held[uid]:
            budget.give(uid, amount)
            held[uid] -= amount
        assert {u: n for u, n in held.items() if n} == budget.usage().used
        assert max(held[1], held[2]) <= 7
