"""What the agenda asks before the bound is known: nothing that no search would want, and the bound stays the same."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.clustering.bound import BoundConfig
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.goals import FitTask, TrainTask

GRID = CandidatesConfig(explicit=(2, 3, 4, 5, 6, 7, 8))


def test_failure_of_a_fit_asked_ahead_matters_only_if_the_bound_comes_to_need_it(agendas):
    plan = agendas.new("bound")
    plan.tell_end("c00016-r0")
    assert not plan.finished
    plan.tell_fit(4, 0, 4)
    assert not plan.finished
    needless = agendas.new("bound")
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


def test_fits_asked_ahead_that_cannot_matter_any_more_are_named(agendas):
    plan = agendas.new("bound")
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


def test_a_fit_that_the_bound_does_not_need_and_a_candidate_does_goes_on(agendas):
    plan = agendas.new("search", grid=CandidatesConfig(explicit=(2, 6)))
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
def test_cancelling_what_is_unneeded_changes_no_bound_and_is_never_missed(agendas, seed, slots, repeats):
    bound = BoundConfig(alpha=0.9, c_start=4, c_limit=300, repeats=repeats)
    used, rng = agendas.curve_of(seed), random.Random(seed)
    plan, running, cancelled = agendas.new("bound", bound=bound), [], set()
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
    assert plan.bound == agendas.sequential(bound, 1000, used)


def test_a_c_that_is_inside_the_bound_whatever_comes_trains_while_the_grid_runs(agendas):
    grid = CandidatesConfig(low=2, count=6, early=True)
    plan = agendas.new(bound=BoundConfig(alpha=0.9, c_start=100, c_limit=800), grid=grid)
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
def test_nothing_is_trained_that_is_no_candidate_in_the_end(agendas, seed, slots, patience, repeats, grid):
    """The bound and the candidates are those of a search that starts no trial before it knows them."""
    bound = BoundConfig(alpha=0.9, c_start=7, c_limit=300, repeats=repeats, patience=patience)
    used, rng = agendas.curve_of(seed), random.Random(seed)
    plan, running, trained, possible = agendas.new(bound=bound, grid=grid), [], set(), None
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
    assert plan.bound == agendas.sequential(bound, 1000, used)
    if plan.bound.c_max is not None:
        assert not possible or plan.bound.c_max in possible
        try:
            final = set(plan.candidates)
        except ConfigurationError:
            final = set()
        assert trained <= final
    else:
        assert trained == set()
