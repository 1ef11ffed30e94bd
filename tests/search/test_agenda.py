"""The agenda: what it asks is complete, never asked twice, and its bound is the sequential search's."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.clustering.bound import BoundConfig
from cedm_ray.clustering.lower_bound import LowerBoundConfig
from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.results import trial_name


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 6),
    repeats=st.integers(1, 3),
    patience=st.integers(1, 2),
    c_start=st.integers(2, 40),
)
def test_bound_does_not_depend_on_how_many_fits_run_at_once_nor_on_who_is_done_first(
    agendas, seed, slots, repeats, patience, c_start
):
    bound = BoundConfig(alpha=0.9, c_start=c_start, c_limit=300, repeats=repeats, patience=patience)
    used = agendas.curve_of(seed)
    plan = agendas.new("bound", bound=bound)
    asked = agendas.work_off(plan, used, free_fits=slots, rng=random.Random(seed))
    assert len(set(asked)) == len(asked), "a fit was asked twice"
    expected = agendas.sequential(bound, 1000, used)
    assert plan.bound == expected
    needed = {point.num_clusters for point in expected.points}
    assert needed <= {task.num_clusters for task in asked}
    if slots == 1:
        assert {task.num_clusters for task in asked} == needed
        assert len(asked) == repeats * len(needed)


def test_every_c_is_fitted_as_often_as_repeats_say(agendas):
    bound = BoundConfig(alpha=0.9, c_start=4, c_limit=8, repeats=3)
    asked = agendas.work_off(agendas.new("bound", bound=bound), lambda c, r: c, free_fits=2, rng=random.Random(0))
    expected = [(4, 0), (4, 1), (4, 2), (8, 0), (8, 1), (8, 2)]
    assert sorted((t.num_clusters, t.repeat) for t in asked) == expected


def test_free_fits_are_used_for_the_doublings_ahead(agendas):
    plan = agendas.new("bound")
    asked = [plan.ask(free_fits=3 - done, free_trials=0) for done in range(3)]
    assert [task.num_clusters for task in asked] == [4, 8, 16]
    assert plan.ask(free_fits=0, free_trials=5) is None


def test_baseline_trains_while_the_bound_is_searched_and_only_where_a_search_is_the_goal(agendas):
    assert agendas.new("search").ask(free_fits=0, free_trials=1) == TrainTask(num_clusters=None)
    assert agendas.new("bound").ask(free_fits=0, free_trials=1) is None
    # The bound unlocks all else, so its fits come first.
    assert isinstance(agendas.new("search").ask(free_fits=1, free_trials=1), FitTask)


def search_with_bound_of_8(agendas):
    """All fits of a search that is known to end at C_max = 8."""
    plan = agendas.new()
    for c, used in ((4, 4), (8, 8), (16, 10), (14, 9), (12, 9), (10, 8), (15, 9), (13, 9), (11, 8), (9, 8)):
        plan.tell_fit(c, 0, used)
    assert plan.bound.c_max == 8
    return plan


def test_trials_start_in_the_candidates_order_each_after_its_fit(agendas):
    plan = search_with_bound_of_8(agendas)
    order = plan.candidates
    assert sorted(order) == [2, 3, 4, 5, 6, 7, 8]
    asked = agendas.work_off(plan, lambda c, r: c, free_fits=1, rng=random.Random(0))
    trained = [task.num_clusters for task in asked if isinstance(task, TrainTask)]
    assert sorted(trained, key=lambda c: c or 0) == [None, *sorted(order)]
    for position, task in enumerate(asked):
        if isinstance(task, TrainTask) and task.num_clusters not in (None, 4, 8):
            assert FitTask(num_clusters=task.num_clusters, repeat=0) in asked[:position]


def test_with_all_fits_there_trials_come_exactly_in_order(agendas):
    plan = search_with_bound_of_8(agendas)
    for c in plan.candidates:
        plan.tell_fit(c, 0, c)
    asked = []
    while (task := plan.ask(free_fits=1, free_trials=1)) is not None:
        asked.append(task.num_clusters)
    assert asked == [None, *plan.candidates]


def test_fits_go_before_trials_as_far_as_they_fit(agendas):
    plan = search_with_bound_of_8(agendas)
    missing = [c for c in plan.candidates if c not in (4, 8)]
    asked = [plan.ask(free_fits=1, free_trials=1) for _ in missing]
    assert asked == [FitTask(num_clusters=c, repeat=0) for c in missing]
    assert plan.num_open_trials == 1 + 7
    # Where no fit has a place, what is fitted trains.
    assert plan.ask(free_fits=0, free_trials=1) == TrainTask(num_clusters=None)
    plan.tell_end("c00005")
    assert plan.num_open_trials == 1 + 7 - 2
    assert agendas.new("bound").num_open_trials == 0


def test_candidates_are_unknown_before_the_bound_and_none_where_no_c_passes(agendas):
    plan = agendas.new()
    assert plan.candidates is None
    for c in (2, 4):
        plan.tell_fit(c, 0, 1)
    assert plan.bound.c_max is None
    assert plan.candidates == ()
    assert plan.finished
    assert plan.ask(free_fits=4, free_trials=4) is None


def test_goal_trial_asks_for_one_fit_and_one_trial_and_nothing_else(agendas):
    plan = agendas.new("trial", num_clusters=5)
    assert plan.ask(free_fits=4, free_trials=4) == FitTask(num_clusters=5, repeat=0)
    assert plan.ask(free_fits=4, free_trials=4) is None
    plan.tell_fit(5, 0, 5)
    assert plan.ask(free_fits=4, free_trials=4) == TrainTask(num_clusters=5)
    assert not plan.finished
    plan.tell_end("c00005")
    assert plan.finished
    assert plan.ask(free_fits=4, free_trials=4) is None


def test_goal_trial_without_c_is_the_baseline(agendas):
    plan = agendas.new("trial")
    assert plan.ask(free_fits=4, free_trials=4) == TrainTask(num_clusters=None)
    plan.tell_end("unconditional")
    assert plan.finished


def test_a_trial_whose_fit_failed_is_over(agendas):
    plan = agendas.new("trial", num_clusters=5)
    plan.tell_end("c00005-r0")
    assert plan.finished
    search = search_with_bound_of_8(agendas)
    search.tell_end("c00005-r0")
    asked = agendas.work_off(search, lambda c, r: c, free_fits=1, rng=random.Random(0))
    assert TrainTask(num_clusters=5) not in asked
    assert TrainTask(num_clusters=7) in asked


def test_failure_of_the_fit_that_the_bound_waits_for_finishes(agendas):
    plan = agendas.new("bound")
    assert plan.blocked_by is None
    plan.tell_end("c00004-r0")
    assert plan.finished
    assert plan.blocked_by == FitTask(num_clusters=4, repeat=0)
    assert plan.ask(free_fits=9, free_trials=9) is None


def test_a_forgotten_task_is_asked_again_and_an_ended_one_is_not(agendas):
    plan = agendas.new("trial")
    task = plan.ask(free_fits=0, free_trials=1)
    plan.forget(task)
    assert plan.ask(free_fits=0, free_trials=1) == task
    plan.tell_end(task.name)
    plan.forget(task)
    assert plan.ask(free_fits=0, free_trials=1) is None


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), slots=st.integers(1, 4))
def test_resume_from_any_records_asks_for_nothing_that_is_done(agendas, seed, share, slots):
    used = agendas.curve_of(seed)
    whole = agendas.new(grid=CandidatesConfig(low=2, count=4))
    asked = agendas.work_off(whole, used, free_fits=slots, rng=random.Random(seed))
    rng = random.Random(seed + 1)
    kept = [task for task in asked if rng.random() < share]
    rng.shuffle(kept)
    again = agendas.new(grid=CandidatesConfig(low=2, count=4))
    for task in kept:
        if isinstance(task, FitTask):
            again.tell_fit(task.num_clusters, task.repeat, used(task.num_clusters, task.repeat))
        else:
            again.tell_end(task.name)
    later = agendas.work_off(again, used, free_fits=slots, rng=rng)
    assert not set(later) & set(kept)
    assert again.bound == whole.bound
    assert again.candidates == whole.candidates
    ended = {task.name for task in [*kept, *later] if isinstance(task, TrainTask)}
    assert ended == {trial_name(c) for c in (None, *whole.candidates)}


def test_an_answer_told_twice_counts_once(agendas):
    plan = agendas.new("bound", bound=BoundConfig(alpha=0.9, c_start=4, c_limit=8, repeats=2))
    for _ in range(4):
        plan.tell_fit(4, 0, 4)
    assert plan.ask(free_fits=1, free_trials=0) == FitTask(num_clusters=4, repeat=1)


@pytest.mark.parametrize("free", [(0, 0), (-1, -1)])
def test_nothing_is_asked_where_nothing_is_free(agendas, free):
    assert agendas.new().ask(free_fits=free[0], free_trials=free[1]) is None


LOWER = LowerBoundConfig(num_clusters=(50, 90), repeats=2)


def test_the_lower_end_is_fitted_after_the_bounds_own_fits_and_reported_with_its_spread(agendas):
    plan = agendas.new("bound", lower=LOWER)
    asked = agendas.work_off(plan, lambda c, r: min(c, 7 + r), free_fits=1, rng=random.Random(0))
    lower = [(task.num_clusters, task.repeat) for task in asked if task.lower]
    assert lower == [(50, 0), (50, 1), (90, 0), (90, 1)]
    assert not any(task.lower for task in asked[: -len(lower)])
    assert plan.bound.c_max == 7
    assert plan.lower.num_used == {50: (7, 8), 90: (7, 8)}
    assert plan.lower.c_min == 8
    assert plan.lower.deviation == pytest.approx(1 / 3**0.5)


def test_a_search_asks_for_no_lower_end(agendas):
    asked = agendas.work_off(
        agendas.new("search", lower=LOWER), lambda c, r: min(c, 7), free_fits=2, rng=random.Random(0)
    )
    assert not any(isinstance(task, FitTask) and task.lower for task in asked)


def test_the_lower_end_may_fail_or_not_fit_the_images_and_the_search_goes_on(agendas):
    plan = agendas.new("bound", lower=LOWER, num_images=60)
    plan.tell_end("c00050-lower-r1")
    asked = agendas.work_off(plan, lambda c, r: min(c, 7), free_fits=2, rng=random.Random(0))
    assert [task.name for task in asked if task.lower] == ["c00050-lower-r0"]
    assert plan.lower.num_used == {50: (7,)}
    assert agendas.new("bound").lower is None


def test_goal_fits_asks_for_exactly_these(agendas):
    plan = agendas.new("fits", sizes=(30, 5), bound=BoundConfig(repeats=2))
    plan.tell_fit(5, 0, 5)
    asked = agendas.work_off(plan, lambda c, r: c, free_fits=3, free_trials=3, rng=random.Random(0))
    assert sorted(task.name for task in asked) == ["c00005-r1", "c00030-r0", "c00030-r1"]
    assert plan.finished
    assert plan.unneeded == set()
