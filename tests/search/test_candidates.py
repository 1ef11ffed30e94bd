"""The grid of C inside the bound."""

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedm_ray.errors import ConfigurationError
from cedm_ray.search.candidates import CandidatesConfig, candidates, certain_candidates, refined


def test_grid_is_even_in_log_c_and_holds_both_ends():
    # 2, 4, 8, ..., 64 are six powers of two.
    assert sorted(candidates(CandidatesConfig(low=2, count=6), 64, seed=0)) == [2, 4, 8, 16, 32, 64]
    # 10 ^ (1, 1.5, 2) = 10, 31.6, 100.
    assert sorted(candidates(CandidatesConfig(low=10, count=3), 100, seed=0)) == [10, 32, 100]


def test_points_that_round_to_one_c_are_one_candidate():
    assert sorted(candidates(CandidatesConfig(low=2, count=9), 4, seed=0)) == [2, 3, 4]
    assert candidates(CandidatesConfig(low=2, count=6), 2, seed=0) == (2,)


def test_one_candidate_is_the_bound_itself():
    assert candidates(CandidatesConfig(count=1), 77, seed=0) == (77,)


def test_explicit_candidates_above_the_bound_are_left_out():
    assert sorted(candidates(CandidatesConfig(explicit=(50, 10, 20, 40)), 40, seed=1)) == [10, 20, 40]


def test_order_is_a_function_of_the_seed_and_not_rising():
    config = CandidatesConfig(explicit=tuple(range(2, 22)))
    first = candidates(config, 100, seed=5)
    assert first == candidates(config, 100, seed=5)
    assert first != candidates(config, 100, seed=6)
    assert first != tuple(sorted(first))
    # The order in which they are written down says nothing.
    assert first == candidates(CandidatesConfig(explicit=tuple(range(21, 1, -1))), 100, seed=5)


@given(low=st.integers(2, 500), extra=st.integers(0, 5000), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_candidate_lies_within_the_bound_once(low, extra, count, seed):
    found = candidates(CandidatesConfig(low=low, count=count), low + extra, seed)
    assert len(set(found)) == len(found) <= count
    assert max(found) == low + extra
    assert min(found) == (low if count > 1 else low + extra)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CandidatesConfig(low=20), "no C >= 20 lies within C_max = 10"),
        (CandidatesConfig(explicit=(11, 12)), r"none of candidates.explicit \[11, 12\] lies within C_max = 10"),
    ],
)
def test_a_grid_outside_the_bound_is_a_configuration_error_with_its_mend(config, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        candidates(config, 10, seed=0)
    assert "candidates" in caught.value.mend


@pytest.mark.parametrize("explicit", [[], [1, 2], [5, 5], [2.5]])
def test_explicit_must_name_each_c_once_and_none_below_two(explicit):
    with pytest.raises(pydantic.ValidationError):
        CandidatesConfig(explicit=explicit)


BRACKET = (100, 200)


@pytest.mark.parametrize(
    "config",
    [
        CandidatesConfig(),
        CandidatesConfig(low=5, count=9),
        CandidatesConfig(low=5, count=9, early=True),
        CandidatesConfig(explicit=(2, 60, 130, 190, 300)),
    ],
)
def test_certain_candidates_are_those_of_every_c_max_that_is_possible(config):
    possible = dict.fromkeys(range(100, 200), BRACKET)
    expected = set(range(1000))
    for c_max in possible:
        expected &= set(candidates(config, c_max, 0, BRACKET))
    found = certain_candidates(config, possible, 0)
    assert set(found) == expected
    assert (config.low if config.explicit is None else 2) in found
    assert certain_candidates(config, {150: BRACKET}, 3) == candidates(config, 150, 3, BRACKET)
    assert certain_candidates(config, {}, 0) == ()
    assert certain_candidates(CandidatesConfig(low=150), possible, 0) == ()


def test_all_but_the_largest_of_an_early_grid_are_certain_and_evenly_spaced():
    config = CandidatesConfig(count=6, early=True)
    # 2 * (sqrt(100 * 200) / 2) ** (i / 5), worked by hand.
    assert set(certain_candidates(config, dict.fromkeys(range(100, 200), BRACKET), 0)) == {2, 5, 11, 26, 60}
    for c_max in (100, 141, 199):
        assert set(candidates(config, c_max, 0, BRACKET)) == {2, 5, 11, 26, 60, c_max}
    # Without a bracket, or with nothing below it, as the paper's.
    plain = CandidatesConfig(count=6)
    assert candidates(config, 150, 0) == candidates(plain, 150, 0)
    assert candidates(config, 3, 0, (2, 4)) == candidates(plain, 3, 0)
    # No C above C_max, though the middle of the bracket is.
    assert max(candidates(CandidatesConfig(count=40, early=True), 100, 0, BRACKET)) == 100


def test_refinement_takes_the_middles_in_log_c_on_both_sides_of_the_best():
    # sqrt(4 * 16) = 8, sqrt(16 * 64) = 32.
    assert refined((64, 4, 256, 16), 16) == (8, 32)
    assert refined((64, 4, 16), 4) == (8,)
    assert refined((64, 4, 16), 64) == (32,)
    assert refined((7,), 7) == ()
    assert refined((7, 8, 9), 8) == ()
    assert refined((7, 8, 10), 8) == (9,)


@given(tried=st.sets(st.integers(2, 3000), min_size=1, max_size=12), data=st.data())
def test_refinement_lies_within_the_bracket_and_ends(tried, data):
    best = data.draw(st.sampled_from(sorted(tried)))
    for _ in range(40):
        new = refined(tried, best)
        assert not tried & set(new)
        assert all(min(tried) < c < max(tried) for c in new)
        if not new:
            break
        tried |= set(new)
    # The neighbors of the best are next to it, or it is an end.
    assert {best - 1, best + 1} & set(range(min(tried), max(tried) + 1)) <= tried


def test_an_earlier_curve_orders_the_grid_by_its_places():
    """By hand: 8 is between 4 (last) and 16 (first) in log C, 32 is halfway from 16 to 64 (second)."""
    config = CandidatesConfig(explicit=[4, 8, 16, 32, 64], best_first=[16, 64, 4])
    assert candidates(config, 64, seed=0) == (16, 32, 8, 64, 4)


def test_outside_an_earlier_curve_the_nearest_counts_and_smaller_c_is_first():
    config = CandidatesConfig(explicit=[2, 4, 64, 128, 256], best_first=[64, 4])
    assert candidates(config, 256, seed=3) == (64, 128, 256, 2, 4)
    assert candidates(CandidatesConfig(explicit=[9, 3], best_first=[5]), 10, seed=0) == (3, 9)


@pytest.mark.parametrize("order", [[], [1, 4], [4, 4]])
def test_an_earlier_curve_names_each_c_once(order):
    with pytest.raises(ValueError, match="list at least one C"):
        CandidatesConfig(best_first=order)


def test_configurations_are_told_apart_in_sets_whatever_they_search():
    also = {"training.learning_rate": {"low": 1e-4, "high": 1e-2}, "clustering.gamma": [0.6]}
    some = [CandidatesConfig(), CandidatesConfig(count=7)]
    some += [CandidatesConfig(also=also, proposals="random", num_trials=number) for number in (1, 2)]
    assert len(set(some + [config.model_copy() for config in some])) == 4
    assert hash(CandidatesConfig(also=also, proposals="tpe", num_trials=1)) == hash(
        CandidatesConfig.model_validate({"also": also, "proposals": "tpe", "num_trials": 1})
    )
