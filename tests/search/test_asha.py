"""The rung rule against hand-worked cutoffs and against Ray Tune's own bracket, and its replay from records."""

import random
from dataclasses import replace

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.search.asha import Asha, AshaConfig
from cedm_ray.search.results import FEATURES, UNCONDITIONAL, TrialReport, trial_name

RUNGS = (1.0, 2.0, 4.0)
CONFIG = AshaConfig(rungs_kimg=RUNGS, reduction_factor=4)


def report(trial, distance, rung=0, collapsed=False):
    return TrialReport.played(
        trial if isinstance(trial, str) else trial_name(trial),
        rung,
        distance,
        images_seen=int(1000 * RUNGS[rung]),
        num_samples=8,
        collapsed=collapsed,
    )


def test_cutoff_is_the_quarter_percentile_of_the_earlier_distances():
    asha = Asha(CONFIG)
    # The 25th percentile by linear interpolation stands at index (n - 1) / 4 of the earlier distances, sorted.
    cases = [(10.0, None), (30.0, 10.0), (15.0, 15.0), (12.5, 12.5), (12.0, 11.875)]
    expected = ["running", "stopped", "running", "running", "stopped"]
    for c, ((distance, cutoff), status) in enumerate(zip(cases, expected, strict=True), start=2):
        decision = asha.decide(report(c, distance))
        assert decision.status == status
        assert decision.cutoff == cutoff


def test_each_rung_has_its_own_cutoff():
    asha = Asha(CONFIG)
    asha.decide(report(2, 1.0))
    assert asha.decide(report(3, 50.0)).status == "stopped"
    first = asha.decide(report(2, 90.0, rung=1))
    assert (first.status, first.cutoff) == ("running", None)


@pytest.mark.parametrize("name", [UNCONDITIONAL, FEATURES])
def test_what_is_compared_with_is_neither_stopped_nor_counted(name):
    asha = Asha(CONFIG)
    assert asha.decide(report(name, 0.5)).cutoff is None
    first = asha.decide(report(2, 10.0))
    assert (first.status, first.cutoff) == ("running", None)
    late = Asha(CONFIG)
    late.decide(report(2, 10.0))
    assert late.decide(report(name, 1e9)).status == "running"
    assert late.decide(report(3, 11.0)).cutoff == 10.0


@pytest.mark.parametrize("distance", [None, float("nan"), float("inf"), -1e-9])
@pytest.mark.parametrize("rung", [0, 2])
@pytest.mark.parametrize("trial", [2, UNCONDITIONAL, FEATURES])
def test_a_distance_that_is_no_distance_ends_the_trial_and_is_not_counted(distance, rung, trial):
    asha = Asha(CONFIG)
    decision = asha.decide(report(trial, distance, rung))
    assert decision.status == "diverged"
    assert asha.decide(report(9, 5.0, rung)).cutoff is None


@pytest.mark.parametrize("rung", [0, 2])
def test_a_collapsed_trial_ends_however_low_its_distance_and_is_not_counted(rung):
    asha = Asha(CONFIG)
    assert asha.decide(report(2, 0.001, rung, collapsed=True)).status == "collapsed"
    assert asha.decide(report(3, 5.0, rung)).cutoff is None


def test_the_last_rung_completes_whatever_the_distance():
    asha = Asha(CONFIG)
    assert asha.decide(report(2, 1.0, rung=2)).status == "completed"
    above = asha.decide(report(3, 99.0, rung=2))
    assert (above.status, above.cutoff, above.reason) == ("completed", None, "trained to 4 kimg: 99")
    assert asha.decide(report(UNCONDITIONAL, 50.0, rung=2)).status == "completed"


def test_a_repeated_report_gets_the_decision_that_was_taken():
    asha = Asha(CONFIG)
    first = asha.decide(report(2, 10.0))
    asha.decide(report(3, 1.0))
    # Held against the cutoff of now (1.0) it would be stopped.
    assert asha.decide(report(2, 10.0)) is first
    assert len(asha.decisions) == 2


@pytest.mark.parametrize("rung", [-1, 3])
def test_a_rung_that_the_configuration_does_not_have_is_refused(rung):
    with pytest.raises(ValueError, match=rf"rung must lie in \[0, 3\), got {rung}"):
        Asha(CONFIG).decide(replace(report(2, 1.0), rung=rung))


@pytest.mark.parametrize("graced", [0, 1])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_decisions_are_those_of_ray_tunes_bracket_where_the_rules_coincide(factor, graced):
    from ray.tune.schedulers.async_hyperband import _Bracket

    class Named:
        def __init__(self, trial_id):
            self.trial_id = trial_id

    rng = random.Random(factor)
    # Only rungs before the last: there Tune knows no end of its own. Its milestones are powers of the factor.
    levels = (1.0, float(factor), float(factor**2), float(factor**3))
    for _ in range(30):
        # Tune's grace period is its first milestone; ours leaves the rungs before it as measurements.
        asha = Asha(AshaConfig(rungs_kimg=levels, reduction_factor=factor, grace_kimg=levels[graced]))
        bracket = _Bracket(min_t=factor**graced, max_t=factor**3, reduction_factor=factor, s=0)
        waiting = dict.fromkeys(range(2, 2 + rng.randint(2, 15)), 0)
        while waiting:
            c = rng.choice(sorted(waiting))
            rung = waiting[c]
            distance = rng.uniform(1, 9)
            theirs = "CONTINUE" if rung < graced else bracket.on_result(Named(str(c)), factor**rung, -distance)
            ours = asha.decide(replace(report(c, distance), rung=rung)).status
            assert ours == ("running" if theirs == "CONTINUE" else "stopped")
            waiting[c] += 1
            if ours == "stopped" or waiting[c] == 3:
                del waiting[c]


def trace(seed, trials=8):
    """Reports of a whole search in the order in which they arrive."""
    rng = random.Random(seed)
    asha, reports = Asha(CONFIG), []
    alive = {trial_name(c): 0 for c in [None, *range(2, trials)]}
    while alive:
        name = rng.choice(sorted(alive))
        distance = rng.choice([None, float("nan"), *[rng.uniform(1, 9) for _ in range(10)]])
        reports.append(report(name, distance, alive[name], collapsed=rng.random() < 0.05))
        alive[name] += 1
        if asha.decide(reports[-1]).status != "running":
            del alive[name]
    return asha, reports


def test_replay_does_not_depend_on_the_order_in_which_records_are_read():
    asha, reports = trace(0)
    for seed in range(5):
        shuffled, decisions = list(reports), list(asha.decisions)
        random.Random(seed).shuffle(shuffled)
        random.Random(seed + 1).shuffle(decisions)
        again = Asha(CONFIG)
        again.replay(shuffled, decisions)
        assert again.decisions == asha.decisions


def test_replay_refuses_a_changed_report_a_missing_report_and_another_rule():
    asha = Asha(CONFIG)
    reports = [report(2, 10.0), report(3, 20.0)]
    for item in reports:
        asha.decide(item)
    with pytest.raises(ValueError, match="decision 2 on c00003 at rung 0 was 'stopped' and is 'running'"):
        Asha(CONFIG).replay([reports[0], report(3, 9.0)], asha.decisions)
    with pytest.raises(ValueError, match="decision 2 on c00003 has no report at its rung"):
        Asha(CONFIG).replay(reports[:1], asha.decisions)
    with pytest.raises(ValueError, match="decision 2"):
        Asha(CONFIG).replay(reports, asha.decisions[1:])
    other = AshaConfig(rungs_kimg=(1.0,), reduction_factor=4)
    with pytest.raises(ValueError, match="was 'running' and is 'completed'"):
        Asha(other).replay(reports, asha.decisions)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), data=st.data())
def test_a_restart_at_any_point_changes_no_decision(seed, data):
    uninterrupted, reports = trace(seed)
    cut = data.draw(st.integers(0, len(reports)))
    before = Asha(CONFIG)
    for item in reports[:cut]:
        before.decide(item)
    after = Asha(CONFIG)
    # Every trial's report is on record before it is judged, so one more report than decisions may lie there.
    after.replay(reports[: cut + 1], before.decisions)
    # Trials that are begun again say all their reports again, in whatever order.
    late = data.draw(st.permutations(reports[:cut]))
    for item in [*late, *reports[cut:]]:
        after.decide(item)
    assert after.decisions == uninterrupted.decisions
    assert [d.sequence for d in after.decisions] == list(range(1, len(reports) + 1))


@pytest.mark.parametrize("rungs", [(), (0.0, 1.0), (-1.0,), (2.0, 1.0), (1.0, 1.0)])
def test_rungs_must_be_positive_and_rise(rungs):
    with pytest.raises(pydantic.ValidationError):
        AshaConfig(rungs_kimg=rungs)


@pytest.mark.parametrize("factor", [1.0, 0.5, np.inf])
def test_reduction_factor_must_be_a_number_above_one(factor):
    with pytest.raises(pydantic.ValidationError):
        AshaConfig(reduction_factor=factor)
