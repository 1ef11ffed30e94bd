"""The arithmetic of a rung, by hand and against every way that the rest can turn out."""

import itertools

import pytest

from cedm_ray.search.halving import kept, outstanding, verdict


@pytest.mark.parametrize(
    ("trials", "rung", "factor", "least", "expected"),
    [
        (5, 0, 2, 1, 2),
        (5, 1, 2, 1, 1),
        (6, 0, 2, 1, 3),
        (6, 1, 2, 1, 1),
        (9, 1, 3, 1, 1),
        (27, 2, 3, 1, 1),
        (8, 3, 2, 1, 1),
        (8, 1, 2, 3, 3),
        (2, 0, 2, 3, 2),
        (6, 0, 1.5, 1, 4),
    ],
)
def test_how_many_go_on(trials, rung, factor, least, expected):
    assert kept(trials, rung, factor, least) == expected


def test_a_verdict_is_certain_and_as_early_as_can_be():
    """By brute force over the ranks of all: what is decided holds in every completion, and what waits has two."""
    for total, keep in itertools.product(range(1, 6), range(1, 5)):
        for arrived in range(1, total + 1):
            for better in range(arrived):
                # Of those that are still to come, any number may be better.
                endings = {better + more < keep for more in range(total - arrived + 1)}
                expected = "waiting" if len(endings) == 2 else "running" if True in endings else "stopped"
                assert verdict(better, total - arrived, keep) == expected


def test_who_may_still_come_at_the_first_rung():
    members = {"a", "b", "c", "d"}
    assert outstanding(members, 0, [{"a"}], [set()], {"d"}, 4) == 2


def test_no_more_come_to_a_later_rung_than_go_on_from_the_one_before():
    members = set("abcdef")
    arrived, passed = [set("abc"), {"a"}], [{"a", "b"}, set()]
    # b has passed; of c, d, e, f one more goes on, as three do in all.
    assert outstanding(members, 1, arrived, passed, set(), 3) == 2
    # Nobody is left but b where all others are out.
    assert outstanding(members, 1, arrived, passed, set("cdef"), 3) == 1
    # A trial that was let through late makes no room below zero.
    assert outstanding(members, 1, arrived, [set("abc"), set()], set(), 2) == 2
