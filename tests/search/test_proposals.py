"""What is proposed: a grid is the product, draws come each once, and nothing depends on how often one was asked."""

import itertools
import math
from collections import Counter
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.proposals import Proposer, number_of_trials
from cedm_ray.search.results import Outcome
from cedm_ray.search.settings import Range, frozen

OWN = {"training.learning_rate": 1e-3, "sampling.guidance": 0.0, "clustering.gamma": 0.6, "training.batch_size": 64}
OWN["clustering.method"] = "temi"
GRID = (11, 2, 26, 5)
LISTS = {"sampling.guidance": (0, 0.5), "clustering.gamma": (0.6, 0.7, 0.8)}
RATES = {"training.learning_rate": Range(low=1e-4, high=1e-2, log=True)}


def all_of(config, grid=GRID, seed=0, outcome=lambda proposal: None):
    """Every proposal, each by a proposer that is made anew."""
    found = []
    for _ in range(Proposer(config, grid, seed, OWN).total):
        found.append(Proposer(config, grid, seed, OWN).propose(found, [outcome(one) for one in found]))
    return found


def test_a_grid_is_the_product_each_once_in_an_order_of_the_seed():
    config = CandidatesConfig(also=LISTS)
    found = all_of(config)
    points = [(one.num_clusters, one.settings) for one in found]
    expected = {
        (c, frozen({"sampling.guidance": w, "clustering.gamma": g}))
        for c, w, g in itertools.product(GRID, (0, 0.5), (0.6, 0.7, 0.8))
    }
    assert len(points) == len(set(points)) == 24
    assert set(points) == expected
    assert [one.number for one in found] == list(range(1, 25))
    assert points == [(one.num_clusters, one.settings) for one in all_of(config)]
    assert points != [(one.num_clusters, one.settings) for one in all_of(config, seed=1)]
    # The order of the grid of C, and of the keys, says nothing.
    turned = CandidatesConfig(also=dict(reversed(LISTS.items())))
    assert found == all_of(turned, grid=sorted(GRID))
    assert all_of(CandidatesConfig(also=LISTS, num_trials=7)) == found[:7]


METHOD_AND_GAMMA = {"clustering.method": ("temi", "kmeans"), "clustering.gamma": (0.6, 0.7, 0.8)}


@pytest.mark.parametrize("proposals", ["grid", "random", "tpe"])
def test_k_means_is_tried_once_whatever_the_settings_of_temi(proposals):
    config = CandidatesConfig(also=METHOD_AND_GAMMA, proposals=proposals, num_trials=99)
    found = all_of(config, grid=(2, 5), outcome=lambda one: Outcome(status="completed", distances=((0, 1.0),)))
    tried = [(one.num_clusters, *dict(one.settings).values()) for one in found]
    assert Counter((c, method) for c, _, method in tried) == {
        (2, "temi"): 3,
        (5, "temi"): 3,
        (2, "kmeans"): 1,
        (5, "kmeans"): 1,
    }
    assert len(set(tried)) == 8


def test_what_differs_from_the_space_is_what_changes():
    for one in all_of(CandidatesConfig(also=LISTS)):
        assert dict(one.changes) == {path: value for path, value in one.settings if value != OWN[path]}
        assert one.task.changes == one.changes
        assert one.task.fit.changes == tuple(change for change in one.changes if change[0] == "clustering.gamma")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), trials=st.integers(1, 40))
def test_draws_come_each_once_within_the_space_and_go_on_as_they_began(seed, count, trials):
    config = CandidatesConfig(also=RATES | LISTS, proposals="random", num_trials=trials)
    grid = list(range(2, 2 + count))
    found = all_of(config, grid=grid, seed=seed)
    assert len({(one.num_clusters, one.settings) for one in found}) == trials
    for one in found:
        values = dict(one.settings)
        assert one.num_clusters in grid
        assert 1e-4 <= values["training.learning_rate"] <= 1e-2
        assert values["sampling.guidance"] in (0, 0.5)
    longer = config.model_copy(update={"num_trials": trials + 5})
    assert all_of(longer, grid=grid, seed=seed)[:trials] == found


@pytest.mark.parametrize("proposals", ["random", "tpe"])
def test_a_space_that_can_be_listed_is_tried_whole_and_no_more(proposals):
    also = {"sampling.guidance": (0, 0.5), "training.batch_size": Range(low=62, high=64)}
    config = CandidatesConfig(also=also, proposals=proposals, num_trials=1000)
    done = Outcome(status="completed", distances=((0, 1.0),))
    found = all_of(config, grid=(3, 7), outcome=lambda proposal: done)
    points = {(one.num_clusters, *dict(one.settings).values()) for one in found}
    assert len(found) == 12
    assert points == set(itertools.product((3, 7), (0, 0.5), (62, 63, 64)))


@pytest.mark.parametrize("proposals", ["random", "tpe"])
def test_a_range_of_few_readable_values_is_drawn_to_more_digits(proposals):
    """To four digits it holds its two ends alone, of two C each."""
    narrow = {"training.learning_rate": Range(low=0.1, high=0.1001)}
    found = all_of(CandidatesConfig(also=narrow, proposals=proposals, num_trials=9), grid=(2, 5))
    rates = [dict(one.settings)["training.learning_rate"] for one in found]
    assert len({(one.num_clusters, one.settings) for one in found}) == 9
    assert all(0.1 <= rate <= 0.1001 for rate in rates)
    assert {(one.num_clusters, rate) for one, rate in zip(found, rates, strict=True)} > set(
        itertools.product((2, 5), (0.1, 0.1001))
    )


def test_draws_of_c_and_of_listed_values_are_even():
    config = CandidatesConfig(also=RATES | LISTS, proposals="random", num_trials=400)
    proposer = Proposer(config, GRID, 5, OWN)
    found = []
    for _ in range(400):
        found.append(proposer.propose(found, [None] * len(found)))
    assert stats.chisquare(list(Counter(one.num_clusters for one in found).values())).pvalue > 0.01
    assert (
        stats.chisquare(list(Counter(dict(one.settings)["clustering.gamma"] for one in found).values())).pvalue > 0.01
    )
    rates = [math.log10(dict(one.settings)["training.learning_rate"]) for one in found]
    assert stats.kstest(rates, stats.uniform(-4, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("proposals", ["grid", "random"])
def test_an_earlier_curve_orders_the_trials_by_their_c(proposals):
    config = CandidatesConfig(also=LISTS, proposals=proposals, num_trials=20, best_first=GRID)
    found = [one.num_clusters for one in all_of(config)]
    assert found == sorted(found, key=GRID.index)
    plain = all_of(config.model_copy(update={"best_first": None}))
    if proposals == "random":
        assert Counter(found) == Counter(one.num_clusters for one in plain)


def test_tpe_looks_at_what_it_is_told():
    config = CandidatesConfig(also=RATES, proposals="tpe", num_trials=30)

    def lower_with(sign):
        def outcome(proposal):
            return Outcome(
                status="completed", distances=((0, sign * dict(proposal.settings)["training.learning_rate"]),)
            )

        return [dict(one.settings)["training.learning_rate"] for one in all_of(config, outcome=outcome)]

    small, large = lower_with(1), lower_with(-1)
    assert small[:10] == large[:10]
    assert median(small[20:]) < 1e-3 < 5e-3 < median(large[20:])


@pytest.mark.parametrize("ahead", [1, 4])
def test_tpe_draws_until_it_knows_how_ten_trials_ended(ahead):
    config = CandidatesConfig(also=RATES, proposals="tpe", num_trials=40, ahead=ahead)

    def proposals(seed, sign):
        """One more than is drawn, where distances rise or fall with the rate."""
        found = []
        while len(found) <= config.drawn:
            known = max(0, len(found) + 1 - ahead)
            rates = [sign * dict(one.settings)["training.learning_rate"] for one in found[:known]]
            ends = [Outcome(status="completed", distances=((0, 1 + rate),)) for rate in rates]
            found.append(Proposer(config, GRID, seed, OWN).propose(found, ends + [None] * (len(found) - known)))
        return found

    pairs = [(proposals(seed, 1), proposals(seed, -1)) for seed in range(3)]
    assert all(rising[:-1] == falling[:-1] for rising, falling in pairs)
    assert any(rising[-1] != falling[-1] for rising, falling in pairs)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CandidatesConfig(also=LISTS), 24),
        (CandidatesConfig(also=LISTS, num_trials=5), 5),
        (CandidatesConfig(also=METHOD_AND_GAMMA), 16),
        (CandidatesConfig(also=METHOD_AND_GAMMA | {"sampling.guidance": (0, 1)}), 32),
        (CandidatesConfig(also=LISTS, num_trials=50), 24),
        (CandidatesConfig(also=RATES, proposals="random", num_trials=50), 50),
        (CandidatesConfig(proposals="tpe", num_trials=3), 3),
        (CandidatesConfig(proposals="random", num_trials=9), 4),
        (CandidatesConfig(also={"training.batch_size": Range(low=8, high=9)}, proposals="tpe", num_trials=99), 8),
    ],
)
def test_how_many_there_are(config, expected):
    assert number_of_trials(config, 4, OWN) == expected
