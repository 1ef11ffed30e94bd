"""The agenda: what it asks is complete, never asked twice, and its bound is the sequential search's."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.clustering.bound import BoundConfig, UpperBoundSearch
from cedm_ray.clustering.lower_bound import LowerBoundConfig
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.agenda import Agenda
from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.goals import FitTask, Goal, TrainTask
from cedm_ray.search.results import trial_name

BOUND = BoundConfig(alpha=0.9, c_start=4, c_limit=100)
NO_LOWER_END = LowerBoundConfig()
GRID = CandidatesConfig(explicit=(2, 3, 4, 5, 6, 7, 8))


def agenda(
    kind="search",
    num_clusters=None,
    sizes=(),
    bound=BOUND,
    lower=NO_LOWER_END,
    grid=GRID,
    num_images=1000,
    seed=0,
):
    goal = Goal(kind=kind, num_clusters=num_clusters, sizes=sizes)
    return Agenda(goal=goal, bound=bound, lower=lower, grid=grid, seed=seed, num_images=num_images)


def curve_of(seed, noise=0.15):
    """A utilization curve that falls, with noise that depends on (C, repeat) alone."""
    knee = random.Random(seed).choice([3, 10, 30, 90, 400])

    def used(c, repeat=0):
        jitter = random.Random(f"{seed}-{c}-{repeat}").uniform(-noise, noise)
        return max(1, min(c, round(c * min(1.0, knee / c + jitter + 0.1))))

    return used


def sequential(bound, num_images, used):
    """The bound search asked one question at a time: what every schedule must agree with."""
    search, repeats = UpperBoundSearch(bound, num_images), {}
    while search.result() is None:
        (c,) = search.ask(1)
        repeats[c] = repeats.get(c, -1) + 1
        search.tell(c, used(c, repeats[c]))
    return search.result()


def work_off(plan, used, *, free_fits, free_trials=1, rng, running=(), limit=10_000):
    """Run the agenda to its end, tasks ending in random order; the names of what was asked, in order."""
    running, asked = list(running), []
    for _ in range(limit):
        fits = sum(isinstance(task, FitTask) for task in running)
        task = plan.ask(free_fits=free_fits - fits, free_trials=free_trials - (len(running) - fits))
        if task is not None:
            asked.append(task)
            running.append(task)
            if rng.random() < 0.7:
                continue
        if not running:
            assert plan.finished, "nothing runs, nothing is asked, and nothing is finished"
            return asked
        task = running.pop(rng.randrange(len(running)))
        if isinstance(task, FitTask):
            plan.tell_fit(task.num_clusters, task.repeat, used(task.num_clusters, task.repeat), lower=task.lower)
        else:
            plan.tell_end(task.name)
    raise AssertionError("the agenda never ends")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 6),
    repeats=st.integers(1, 3),
    patience=st.integers(1, 2),
    c_start=st.integers(2, 40),
)
def test_bound_does_not_depend_on_how_many_fits_run_at_once_nor_on_who_is_done_first(
    seed, slots, repeats, patience, c_start
):
    bound = BoundConfig(alpha=0.9, c_start=c_start, c_limit=300, repeats=repeats, patience=patience)
    used = curve_of(seed)
    plan = agenda("bound", bound=bound)
    asked = work_off(plan, used, free_fits=slots, rng=random.Random(seed))
    assert len(set(asked)) == len(asked), "a fit was asked twice"
    expected = sequential(bound, 1000, used)
    assert plan.bound == expected
    needed = {point.num_clusters for point in expected.points}
    assert needed <= {task.num_clusters for task in asked}
    if slots == 1:
        assert {task.num_clusters for task in asked} == needed
        assert len(asked) == repeats * len(needed)


def test_every_c_is_fitted_as_often_as_repeats_say():
    bound = BoundConfig(alpha=0.9, c_start=4, c_limit=8, repeats=3)
    asked = work_off(agenda("bound", bound=bound), lambda c, r: c, free_fits=2, rng=random.Random(0))
    expected = [(4, 0), (4, 1), (4, 2), (8, 0), (8, 1), (8, 2)]
    assert sorted((t.num_clusters, t.repeat) for t in asked) == expected


def test_free_fits_are_used_for_the_doublings_ahead():
    plan = agenda("bound")
    asked = [plan.ask(free_fits=3 - done, free_trials=0) for done in range(3)]
    assert [task.num_clusters for task in asked] == [4, 8, 16]
    assert plan.ask(free_fits=0, free_trials=5) is None


def test_baseline_trains_while_the_bound_is_searched_and_only_where_a_search_is_the_goal():
    assert agenda("search").ask(free_fits=0, free_trials=1) == TrainTask(num_clusters=None)
    assert agenda("bound").ask(free_fits=0, free_trials=1) is None
    # The bound unlocks all else, so its fits come first.
    assert isinstance(agenda("search").ask(free_fits=1, free_trials=1), FitTask)


def search_with_bound_of_8():
    """All fits of a search that is known to end at C_max = 8."""
    plan = agenda()
    for c, used in ((4, 4), (8, 8), (16, 10), (14, 9), (12, 9), (10, 8), (15, 9), (13, 9), (11, 8), (9, 8)):
        plan.tell_fit(c, 0, used)
    assert plan.bound.c_max == 8
    return plan


def test_trials_start_in_the_candidates_order_each_after_its_fit():
    plan = search_with_bound_of_8()
    order = plan.candidates
    assert sorted(order) == [2, 3, 4, 5, 6, 7, 8]
    asked = work_off(plan, lambda c, r: c, free_fits=1, rng=random.Random(0))
    trained = [task.num_clusters for task in asked if isinstance(task, TrainTask)]
    assert sorted(trained, key=lambda c: c or 0) == [None, *sorted(order)]
    for position, task in enumerate(asked):
        if isinstance(task, TrainTask) and task.num_clusters not in (None, 4, 8):
            assert FitTask(num_clusters=task.num_clusters, repeat=0) in asked[:position]


def test_with_all_fits_there_trials_come_exactly_in_order():
    plan = search_with_bound_of_8()
    for c in plan.candidates:
        plan.tell_fit(c, 0, c)
    asked = []
    while (task := plan.ask(free_fits=1, free_trials=1)) is not None:
        asked.append(task.num_clusters)
    assert asked == [None, *plan.candidates]


def test_candidates_are_unknown_before_the_bound_and_none_where_no_c_passes():
    plan = agenda()
    assert plan.candidates is None
    for c in (2, 4):
        plan.tell_fit(c, 0, 1)
    assert plan.bound.c_max is None
    assert plan.candidates == ()
    assert plan.finished
    assert plan.ask(free_fits=4, free_trials=4) is None


def test_goal_trial_asks_for_one_fit_and_one_trial_and_nothing_else():
    plan = agenda("trial", num_clusters=5)
    assert plan.ask(free_fits=4, free_trials=4) == FitTask(num_clusters=5, repeat=0)
    assert plan.ask(free_fits=4, free_trials=4) is None
    plan.tell_fit(5, 0, 5)
    assert plan.ask(free_fits=4, free_trials=4) == TrainTask(num_clusters=5)
    assert not plan.finished
    plan.tell_end("c00005")
    assert plan.finished
    assert plan.ask(free_fits=4, free_trials=4) is None


def test_goal_trial_without_c_is_the_baseline():
    plan = agenda("trial")
    assert plan.ask(free_fits=4, free_trials=4) == TrainTask(num_clusters=None)
    plan.tell_end("unconditional")
    assert plan.finished


def test_a_trial_whose_fit_failed_is_over():
    plan = agenda("trial", num_clusters=5)
    plan.tell_end("c00005-r0")
    assert plan.finished
    search = search_with_bound_of_8()
    search.tell_end("c00005-r0")
    asked = work_off(search, lambda c, r: c, free_fits=1, rng=random.Random(0))
    assert TrainTask(num_clusters=5) not in asked
    assert TrainTask(num_clusters=7) in asked


def test_failure_of_the_fit_that_the_bound_waits_for_finishes():
    plan = agenda("bound")
    assert plan.blocked_by is None
    plan.tell_end("c00004-r0")
    assert plan.finished
    assert plan.blocked_by == FitTask(num_clusters=4, repeat=0)
    assert plan.ask(free_fits=9, free_trials=9) is None


def test_failure_of_a_fit_asked_ahead_matters_only_if_the_bound_comes_to_need_it():
    plan = agenda("bound")
    plan.tell_end("c00016-r0")
    assert not plan.finished
    plan.tell_fit(4, 0, 4)
    assert not plan.finished
    needless = agenda("bound")
    needless.tell_end("c00016-r0")
    needless.tell_fit(4, 0, 4)
    # C = 8 fails, so 16 is never asked for.
    needless.tell_fit(8, 0, 4)
    for c in (7, 6, 5):
        needless.tell_fit(c, 0, 3)
    assert needless.bound.c_max == 4
    assert needless.blocked_by is None
    plan.tell_fit(8, 0, 8)
    assert plan.finished
    assert plan.blocked_by == FitTask(num_clusters=16, repeat=0)


def test_a_forgotten_task_is_asked_again_and_an_ended_one_is_not():
    plan = agenda("trial")
    task = plan.ask(free_fits=0, free_trials=1)
    plan.forget(task)
    assert plan.ask(free_fits=0, free_trials=1) == task
    plan.tell_end(task.name)
    plan.forget(task)
    assert plan.ask(free_fits=0, free_trials=1) is None


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), slots=st.integers(1, 4))
def test_resume_from_any_records_asks_for_nothing_that_is_done(seed, share, slots):
    used = curve_of(seed)
    whole = agenda(grid=CandidatesConfig(low=2, count=4))
    asked = work_off(whole, used, free_fits=slots, rng=random.Random(seed))
    rng = random.Random(seed + 1)
    kept = [task for task in asked if rng.random() < share]
    rng.shuffle(kept)
    again = agenda(grid=CandidatesConfig(low=2, count=4))
    for task in kept:
        if isinstance(task, FitTask):
            again.tell_fit(task.num_clusters, task.repeat, used(task.num_clusters, task.repeat))
        else:
            again.tell_end(task.name)
    later = work_off(again, used, free_fits=slots, rng=rng)
    assert not set(later) & set(kept)
    assert again.bound == whole.bound
    assert again.candidates == whole.candidates
    ended = {task.name for task in [*kept, *later] if isinstance(task, TrainTask)}
    assert ended == {trial_name(c) for c in (None, *whole.candidates)}


def test_an_answer_told_twice_counts_once():
    plan = agenda("bound", bound=BoundConfig(alpha=0.9, c_start=4, c_limit=8, repeats=2))
    for _ in range(4):
        plan.tell_fit(4, 0, 4)
    assert plan.ask(free_fits=1, free_trials=0) == FitTask(num_clusters=4, repeat=1)


@pytest.mark.parametrize("free", [(0, 0), (-1, -1)])
def test_nothing_is_asked_where_nothing_is_free(free):
    assert agenda().ask(free_fits=free[0], free_trials=free[1]) is None


def test_fits_asked_ahead_that_cannot_matter_any_more_are_named():
    plan = agenda("bound")
    asked = [plan.ask(free_fits=4 - done, free_trials=0) for done in range(4)]
    assert [task.num_clusters for task in asked] == [4, 8, 16, 32]
    assert plan.unneeded == set()
    plan.tell_fit(4, 0, 4)
    plan.tell_fit(8, 0, 8)
    assert plan.unneeded == set()
    # The climb ends at 16, so 32 is no longer asked for; the grid between 8 and 16 is.
    plan.tell_fit(16, 0, 3)
    assert plan.unneeded == {"c00032-r0"}
    assert plan.ask(free_fits=1, free_trials=0).num_clusters == 15
    plan.tell_fit(15, 0, 15)
    assert plan.bound.c_max == 15
    assert plan.unneeded == {"c00032-r0"}


def test_a_fit_that_the_bound_does_not_need_and_a_candidate_does_goes_on():
    plan = agenda("search", grid=CandidatesConfig(explicit=(2, 6)))
    for c, used in ((4, 4), (8, 3), (7, 2)):
        plan.tell_fit(c, 0, used)
    tasks = [plan.ask(free_fits=2, free_trials=0) for _ in range(2)]
    assert [task.num_clusters for task in tasks] == [6, 5]
    plan.tell_fit(5, 0, 5)
    assert plan.bound is None
    plan.tell_fit(6, 0, 6)
    assert (plan.bound.c_max, plan.unneeded) == (6, set())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(2, 6), repeats=st.integers(1, 2))
def test_cancelling_what_is_unneeded_changes_no_bound_and_is_never_missed(seed, slots, repeats):
    bound = BoundConfig(alpha=0.9, c_start=4, c_limit=300, repeats=repeats)
    used, rng = curve_of(seed), random.Random(seed)
    plan, running, cancelled = agenda("bound", bound=bound), [], set()
    while not plan.finished:
        while (task := plan.ask(free_fits=slots - len(running), free_trials=0)) is not None:
            assert task.name not in cancelled, "what was called unneeded is asked for again"
            running.append(task)
        for task in [task for task in running if task.name in plan.unneeded]:
            running.remove(task)
            plan.forget(task)
            cancelled.add(task.name)
        if running:
            task = running.pop(rng.randrange(len(running)))
            plan.tell_fit(task.num_clusters, task.repeat, used(task.num_clusters, task.repeat))
    assert plan.bound == sequential(bound, 1000, used)


LOWER = LowerBoundConfig(num_clusters=(50, 90), repeats=2)


def test_the_lower_end_is_fitted_after_the_bounds_own_fits_and_reported_with_its_spread():
    plan = agenda("bound", lower=LOWER)
    asked = work_off(plan, lambda c, r: min(c, 7 + r), free_fits=1, rng=random.Random(0))
    lower = [(task.num_clusters, task.repeat) for task in asked if task.lower]
    assert lower == [(50, 0), (50, 1), (90, 0), (90, 1)]
    assert not any(task.lower for task in asked[: -len(lower)])
    assert plan.bound.c_max == 7
    assert plan.lower.num_used == {50: (7, 8), 90: (7, 8)}
    assert plan.lower.c_min == 8
    assert plan.lower.deviation == pytest.approx(1 / 3**0.5)


def test_a_search_asks_for_no_lower_end():
    asked = work_off(agenda("search", lower=LOWER), lambda c, r: min(c, 7), free_fits=2, rng=random.Random(0))
    assert not any(isinstance(task, FitTask) and task.lower for task in asked)


def test_the_lower_end_may_fail_or_not_fit_the_images_and_the_search_goes_on():
    plan = agenda("bound", lower=LOWER, num_images=60)
    plan.tell_end("c00050-lower-r1")
    asked = work_off(plan, lambda c, r: min(c, 7), free_fits=2, rng=random.Random(0))
    assert [task.name for task in asked if task.lower] == ["c00050-lower-r0"]
    assert plan.lower.num_used == {50: (7,)}
    assert agenda("bound").lower is None


def test_goal_fits_asks_for_exactly_these():
    plan = agenda("fits", sizes=(30, 5), bound=BoundConfig(repeats=2))
    plan.tell_fit(5, 0, 5)
    asked = work_off(plan, lambda c, r: c, free_fits=3, free_trials=3, rng=random.Random(0))
    assert sorted(task.name for task in asked) == ["c00005-r1", "c00030-r0", "c00030-r1"]
    assert plan.finished
    assert plan.unneeded == set()


def test_a_c_that_is_inside_the_bound_whatever_comes_trains_while_the_grid_runs():
    grid = CandidatesConfig(low=2, count=6, early=True)
    plan = agenda(bound=BoundConfig(alpha=0.9, c_start=100, c_limit=800), grid=grid)
    assert plan.certain == ()
    plan.tell_fit(100, 0, 100)
    # The climb goes on, and C_max may be anything up to 800: the lower end of the grid alone does not move.
    assert plan.certain == (2,)
    plan.tell_fit(200, 0, 100)
    assert plan.bound is None
    assert set(plan.certain) == {2, 5, 11, 26, 60}
    asked = [task for task in (plan.ask(free_fits=20, free_trials=9) for _ in range(30)) if task is not None]
    assert {2, 5, 11, 26, 60} <= {task.num_clusters for task in asked if isinstance(task, FitTask)}
    assert plan.unneeded == set()
    assert [task for task in asked if isinstance(task, TrainTask)] == [TrainTask(num_clusters=None)]
    plan.tell_fit(11, 0, 11)
    assert plan.ask(free_fits=9, free_trials=9) == TrainTask(num_clusters=11)
    assert plan.bound is None
    for c in (188, 187, 175, 174, 162, 161, 149, 148, 136, 135, 123, 122, 110, 109, 113, 126, 139, 152, 165, 178, 191):
        plan.tell_fit(c, 0, 3)
    assert plan.bound.c_max == 100
    assert set(plan.candidates) == {2, 5, 11, 26, 60, 100}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 5),
    patience=st.integers(1, 2),
    repeats=st.integers(1, 2),
    grid=st.sampled_from(
        [GRID, CandidatesConfig(), CandidatesConfig(low=5, count=4, early=True), CandidatesConfig(count=1, early=True)]
    ),
)
def test_nothing_is_trained_that_is_no_candidate_in_the_end(seed, slots, patience, repeats, grid):
    """The bound and the candidates are those of a search that starts no trial before it knows them."""
    bound = BoundConfig(alpha=0.9, c_start=7, c_limit=300, repeats=repeats, patience=patience)
    used, rng = curve_of(seed), random.Random(seed)
    plan, running, trained, possible = agenda(bound=bound, grid=grid), [], set(), None
    while plan.bound is None:
        now = set(plan._search.possible())
        assert possible is None or not possible or now <= possible
        possible = now
        while (task := plan.ask(free_fits=slots - len(running), free_trials=9)) is not None:
            if isinstance(task, FitTask):
                running.append(task)
            elif task.num_clusters is not None:
                trained.add(task.num_clusters)
        task = running.pop(rng.randrange(len(running)))
        plan.tell_fit(task.num_clusters, task.repeat, used(task.num_clusters, task.repeat))
    assert plan.bound == sequential(bound, 1000, used)
    if plan.bound.c_max is not None:
        assert not possible or plan.bound.c_max in possible
        try:
            final = set(plan.candidates)
        except ConfigurationError:
            final = set()
        assert trained <= final
    else:
        assert trained == set()
