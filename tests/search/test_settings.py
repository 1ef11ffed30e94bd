"""Settings that are searched besides C: which may be, and what is drawn of them."""

import itertools
import random
import typing

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cedm_ray.search.settings import (
    SECTIONS,
    Range,
    between,
    cells,
    corners,
    differing,
    frozen,
    is_whole,
    last_words,
    of_clusterings,
    paths_of,
    shown,
    told,
    why_not,
)
from cedm_ray.search.space import SearchSpace

SPACE = SearchSpace.model_validate({"name": "x", "images": {"source": "x"}}).model_dump()


@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.001, 1e4), log=st.booleans(), seed=st.integers(0, 99))
def test_a_range_is_never_left_and_gives_four_digits(low, factor, log, seed):
    one = Range(low=low, high=low * factor, log=log)
    value = one.draw(random.Random(seed), whole=False)
    assert isinstance(value, float)
    assert one.low <= value <= one.high
    assert value in (one.low, one.high) or float(f"{value:.4g}") == value


@given(low=st.integers(1, 500), more=st.integers(1, 500), log=st.booleans(), seed=st.integers(0, 99))
def test_a_whole_setting_gets_whole_numbers(low, more, log, seed):
    value = Range(low=low, high=low + more, log=log).draw(random.Random(seed), whole=True)
    assert isinstance(value, int)
    assert low <= value <= low + more


@pytest.mark.parametrize(
    ("one", "spread"),
    [
        (Range(low=1e-4, high=1e-2, log=True), stats.loguniform(1e-4, 1e-2)),
        (Range(low=0, high=2), stats.uniform(0, 2)),
    ],
)
def test_draws_are_spread_as_they_should_be(one, spread):
    dice = random.Random(0)
    drawn = [one.draw(dice, whole=False) for _ in range(2000)]
    assert stats.kstest(drawn, spread.cdf).pvalue > 0.01


def test_every_whole_number_of_a_range_is_as_likely():
    dice = random.Random(1)
    drawn = [Range(low=3, high=7).draw(dice, whole=True) for _ in range(5000)]
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [3, 4, 5, 6, 7]
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize(
    "given", [{"low": 1, "high": 1}, {"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True}, {"low": 1}]
)
def test_a_range_has_two_ends_in_order(given):
    with pytest.raises(pydantic.ValidationError, match=r"low must|high"):
        Range.model_validate(given)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("training.learning_rate", None),
        ("sampling.guidance", None),
        ("sampling.num_steps", None),
        ("clustering.gamma", None),
        ("network.channel_mult", None),
        ("augmentation.probability", None),
        ("edm.p_mean", None),
        ("clustering.method", None),
        ("features.extractor", None),
        ("features.weights", "settings of clustering, network"),
        ("images.size", "settings of clustering, network"),
        ("rungs.rungs_kimg", "settings of clustering, network"),
        ("resources.trial.workers", "settings of clustering, network"),
        ("bound.alpha", "settings of clustering, network"),
        ("evaluation.num_samples", "settings of clustering, network"),
        ("seed", "settings of clustering, network"),
        ("training.rate", "has no such setting; of its settings batch_size, learning_rate,"),
        ("training", "has no such setting"),
        ("training.microbatch", "changes no result"),
        ("sampling.batch_size", "changes no result"),
        ("clustering.num_neighbors", "share its neighbors"),
    ],
)
def test_only_what_a_trial_is_made_of_may_be_searched(path, reason):
    found = why_not(path, SPACE)
    assert found is None if reason is None else reason in found


def test_steps_that_no_rung_samples_with_may_not_be_searched():
    plain = {**SPACE, "evaluation": {**SPACE["evaluation"], "num_steps": 8}}
    assert "would change no distance" in why_not("sampling.num_steps", plain)


def test_corners_are_all_combinations_of_ends_and_listed_values():
    also = {"a.x": Range(low=1, high=3), "a.y": (5, 6, 7)}
    expected = [{"a.x": x, "a.y": y} for x, y in itertools.product((1, 3), (5, 6, 7))]
    assert list(corners(also)) == expected
    with pytest.raises(ValueError, match="4,096 combinations, and at most 2,048"):
        corners({f"a.x{index}": (0, 1) for index in range(12)})


@pytest.mark.parametrize("section", SECTIONS)
def test_the_spaces_own_value_of_a_setting_says_whether_it_is_a_whole_number(section):
    """A default that is written as a whole number would make whole numbers of what is drawn of a float."""
    for name, field in SearchSpace.model_fields[section].annotation.model_fields.items():
        takes_fractions = float in (field.annotation, *typing.get_args(field.annotation))
        assert not (takes_fractions and is_whole(field.default)), f"{section}.{name}"


def test_what_lies_between_the_ends_is_one_value_of_each_range():
    also = {"a": Range(low=2, high=9), "b": (5, 6), "c": Range(low=1, high=2), "d": Range(low=3, high=4)}
    own = {"a": 4, "b": 5, "c": 0.5, "d": 1}
    assert list(between(own, also)) == [{"a": 3, "b": 5, "c": 1, "d": 3}, {"a": 2, "b": 5, "c": 1.5, "d": 3}]
    assert list(between({"b": 5}, {"b": (5, 6)})) == []


def test_settings_in_words():
    assert shown(0.0005) == "0.0005"
    assert shown((1, 2)) == "[1, 2]"
    assert shown("l2") == "l2"
    assert [shown(value) for value in (None, True, False, 1)] == ["null", "true", "false", "1"]
    assert told(frozen({"training.learning_rate": 1e-3, "sampling.guidance": 0})) == "guidance 0, learning_rate 0.001"
    both = {"training.learning_rate": 1e-3, "clustering.learning_rate": 1e-4}
    assert told(both) == "training.learning_rate 0.001, clustering.learning_rate 0.0001"
    assert last_words(["a.x", "b.y"]) == {"a.x": "x", "b.y": "y"}
    assert told({}) == ""


def test_columns_of_a_table_are_those_of_any_trial_and_its_cells_those_of_one():
    trials = [{}, {"b.x": 0.5, "a.y": None}, {"a.y": (1, 2), "c.z": "l2"}]
    paths = paths_of(trials)
    assert paths == ["b.x", "a.y", "c.z"]
    assert [cells(one, paths) for one in trials] == [
        [None, None, None],
        ["0.5", "null", None],
        [None, "[1, 2]", "l2"],
    ]


def test_frozen_settings_have_an_order_and_a_hash():
    assert frozen({"b.x": [1, [2]], "a.y": 3}) == (("a.y", 3), ("b.x", (1, (2,))))
    assert hash(frozen({"b.x": [1]})) == hash(frozen({"b.x": (1,)}))


def test_what_differs_and_what_a_clustering_depends_on():
    settings = frozen({"clustering.gamma": 0.6, "clustering.epochs": 9, "training.batch_size": 8})
    own = {"clustering.gamma": 0.6, "clustering.epochs": 4, "training.batch_size": 8}
    assert differing(settings, own) == (("clustering.epochs", 9),)
    assert of_clusterings(settings) == (("clustering.epochs", 9), ("clustering.gamma", 0.6))
    temi = frozen({"clustering.method": "temi", "clustering.gamma": 0.7, "features.extractor": "x", "edm.p_std": 1})
    assert of_clusterings(temi) == temi[:2] + temi[3:]
    # k-means asks for nothing of TEMI's.
    kmeans = frozen({**dict(temi), "clustering.method": "kmeans"})
    assert of_clusterings(kmeans) == (("clustering.method", "kmeans"), ("features.extractor", "x"))
    assert [is_whole(own) for own in (3, 3.0, True, None, "x")] == [True, False, False, False, False]


def test_a_share_of_a_range_is_where_so_many_draws_lie_below():
    dice = random.Random(5)
    for values in (Range(low=2, high=4), Range(low=1e-4, high=1e-2, log=True)):
        draws = [values.draw(dice, whole=False) for _ in range(4000)]
        for share in (0.1, 0.5, 0.9):
            assert np.quantile(draws, share) == pytest.approx(values.at(share, whole=False), rel=0.1)
    assert Range(low=2, high=5).at(0.5, whole=True) in (3, 4)
