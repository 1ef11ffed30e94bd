"""Finalists and the winner, by hand."""

import pydantic
import pytest

from cedm_ray.search.finals import FinalsConfig, finalists, winner
from cedm_ray.search.space import SearchSpace


def test_finalists_are_the_lowest_and_of_equals_the_smaller_c():
    assert finalists({8: 3.0, 2: 1.5, 4: 1.5, 16: 2.0}, 3) == (2, 4, 16)
    assert finalists({8: 3.0}, 3) == (8,)
    assert finalists({}, 2) == ()


def test_the_lowest_mean_wins_with_its_best_seed():
    # Means 2.0 and 1.9: the best single model is not of the C that wins.
    distances = {4: {0: 1.7, 1: 2.3}, 8: {0: 1.95, 1: 1.85}}
    assert winner(distances, (4, 8)) == (8, 1)
    assert winner({4: {0: 1.7}, 8: {0: 1.95, 1: 1.4}}, (4, 8)) == (8, 1)


def test_only_finalists_win_and_the_first_of_equals():
    distances = {4: {0: 2.0}, 8: {0: 2.0}, 16: {0: 1.0}}
    assert winner(distances, (8, 4)) == (8, 0)
    assert winner(distances, (32, 4)) == (4, 0)
    assert winner(distances, (32,)) is None
    assert winner({}, ()) is None


@pytest.mark.parametrize("key", ["finalists", "seeds", "budget_kimg"])
def test_counts_and_budget_are_above_zero(key):
    with pytest.raises(pydantic.ValidationError):
        FinalsConfig.model_validate({key: 0})


def test_the_winners_budget_lies_above_the_search():
    space = {"name": "x", "images": {"source": "x"}, "rungs": {"rungs_kimg": [1, 2]}}
    assert SearchSpace.model_validate({**space, "finals": {"budget_kimg": 3}}).finals.budget_kimg == 3
    with pytest.raises(pydantic.ValidationError, match=r"finals.budget_kimg must lie above the last rung, 2; got 2"):
        SearchSpace.model_validate({**space, "finals": {"budget_kimg": 2}})
