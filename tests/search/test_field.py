"""The candidates' trials: proposals depend on what was measured and on nothing else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.field import Field
from cedm_ray.search.goals import TrainTask
from cedm_ray.search.results import Outcome
from cedm_ray.search.settings import Range

OWN = {"training.learning_rate": 1e-3}
GRID = (8, 2, 4)


def config(**more):
    also = {"training.learning_rate": Range(low=1e-4, high=1e-2, log=True)}
    return CandidatesConfig(also=also, **{"proposals": "tpe", "num_trials": 12, "ahead": 3, **more})


def outcome_of(task):
    """What a trial comes to: a function of the trial."""
    dice = random.Random(task.name)
    status = dice.choice(["completed", "completed", "stopped", "failed"])
    distances = {"completed": ((0, 3.0), (1, dice.random())), "stopped": ((0, 3 + dice.random()),)}
    return Outcome(status=status, distances=distances.get(status, ()))


def work_off(one, dice, ended=()):
    """End trials in any order until no new one comes; (the proposals, the most that were open at once)."""
    ended, most = dict(ended), 0
    while True:
        waves = one.waves(GRID, ended.get)
        running = [task for wave in waves for task in wave if task not in ended]
        most = max(most, len(running))
        if not running:
            return one.proposals, most
        task = dice.choice(running)
        ended[task] = outcome_of(task)


def test_c_alone_is_the_grid_in_its_order():
    one = Field(CandidatesConfig(), 0)
    assert one.waves(GRID, lambda task: None) == (tuple(TrainTask(num_clusters=c) for c in GRID),)
    assert one.waves((), lambda task: None) == ((),)
    assert one.proposals == []


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_proposals_depend_on_no_order_and_never_are_more_ahead_than_allowed(seed):
    expected, _ = work_off(Field(config(), 0, OWN), random.Random(0))
    found, most = work_off(Field(config(), 0, OWN), random.Random(seed))
    assert found == expected
    assert len(found) == 12
    assert most <= 3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 12))
def test_a_field_goes_on_from_what_is_on_record(seed, cut):
    expected, _ = work_off(Field(config(), 0, OWN), random.Random(0))
    again = Field(config(), 0, OWN)
    for proposal in expected[:cut]:
        again.tell_proposal(proposal)
    assert work_off(again, random.Random(seed))[0] == expected


def test_what_is_on_record_stays_though_it_would_come_out_otherwise_now():
    one = Field(config(), 0, OWN)
    one.waves(GRID, lambda task: None)
    other = Field(config(), 1, OWN)
    for proposal in one.proposals:
        other.tell_proposal(proposal)
    other.waves(GRID, outcome_of)
    assert other.proposals[:3] == one.proposals


def test_a_later_proposal_is_a_wave_of_its_own():
    waves = Field(config(), 0, OWN).waves(GRID, outcome_of)
    assert [len(wave) for wave in waves] == [3] + [1] * 9
    drawn = Field(config(proposals="random"), 0, OWN).waves(GRID, lambda task: None)
    assert [len(wave) for wave in drawn] == [12]


@pytest.mark.parametrize("ahead", [1, 12, 50])
def test_however_far_ahead_all_are_proposed_in_the_end(ahead):
    found, most = work_off(Field(config(ahead=ahead), 0, OWN), random.Random(1))
    assert len(found) == 12
    assert most <= ahead
