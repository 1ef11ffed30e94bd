"""Agenda and judge in step: what a whole search trains and decides, whatever the cluster and whenever it is cut."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.clustering.bound import BoundConfig
from cedm_ray.clustering.lower_bound import LowerBoundConfig
from cedm_ray.search.agenda import Agenda
from cedm_ray.search.asha import Asha, AshaConfig
from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.contest import Contest
from cedm_ray.search.finals import FinalsConfig
from cedm_ray.search.goals import FitTask, Goal, TrainTask
from cedm_ray.search.results import TrialReport, read_trial_name, trial_name

RUNGS = AshaConfig(rungs_kimg=(1, 2, 4), reduction_factor=2, rule="halving")
GRID = CandidatesConfig(explicit=(2, 3, 4, 5, 6, 7))
SEARCH = Goal(kind="search")


def contest(grid=GRID, rungs=RUNGS, finals=None, goal=SEARCH, c_max=8, fitted=True, failed=(), refinements=()):
    agenda = Agenda(
        goal=goal,
        bound=BoundConfig(c_start=c_max, c_limit=c_max),
        lower=LowerBoundConfig(),
        grid=grid,
        seed=0,
        num_images=1000,
        finals=finals,
    )
    if fitted:
        agenda.tell_fit(c_max, 0, c_max)
    for name in failed:
        agenda.tell_end(name)
    for wave, order in enumerate(refinements, start=1):
        agenda.tell_refinement(wave, order)
    return Contest(agenda, Asha(rungs, finals))


def distance(name, rung, seed=0):
    """What a trial measures: a function of the trial and the rung alone, as in reality."""
    return random.Random(f"{seed}-{name}-{rung}").uniform(1, 2) + 3 / (rung + 1)


def report(name, rung, value=None):
    return TrialReport.played(
        name, rung, distance(name, rung) if value is None else value, images_seen=1000 * 2**rung, num_samples=8
    )


class World:
    """A cluster that keeps records and may lose its driver at any turn."""

    def __init__(self, measured=distance, failing=(), **settings):
        self.measured, self.failing, self.settings = measured, set(failing), settings
        self.reports, self.decisions, self.failed, self.waves, self.images = {}, [], [], [], {}

    def drive(self, slots, rng, turns=10**6):
        """Follow the agenda until it is finished or the power is cut. Whether it finished."""
        live = contest(failed=self.failed, refinements=self.waves, **self.settings)
        live.replay(self.reports.values(), self.decisions)
        self.decisions += live.settle()
        agenda, running = live.agenda, []
        while not agenda.finished:
            if (turns := turns - 1) < 0:
                return False
            self.waves = [tuple(task.num_clusters for task in wave) for wave in (agenda.waves or ())[1:]]
            while (task := agenda.ask(free_fits=4, free_trials=slots - len(running))) is not None:
                if isinstance(task, FitTask):
                    agenda.tell_fit(task.num_clusters, task.repeat, task.num_clusters)
                else:
                    running.append([task, 3 if task.final else 0])
            assert running, "nothing runs, nothing is asked for, and nothing is finished"
            entry = rng.choice(running)
            task, rung = entry
            if (task.name, rung) in self.failing:
                running.remove(entry)
                self.failed.append(task.name)
                agenda.tell_end(task.name)
                self.decisions += live.settle()
                continue
            said = self.reports.setdefault(
                (task.trial, rung), report(task.trial, rung, self.measured(task.trial, rung))
            )
            self.images[task.trial] = max(self.images.get(task.trial, 0), said.images_seen)
            decision, new = live.judge(said)
            self.decisions += new
            if decision.status == "running":
                entry[1] += 1
            else:
                running.remove(entry)
                agenda.forget(task)
        return True

    @property
    def endings(self):
        """(how it ended, at which rung) of every trial."""
        found = {}
        for decision in self.decisions:
            if decision.status != "waiting":
                found[decision.trial] = (decision.status, decision.rung)
        return found


def halved(names, measured, keep):
    """Successive halving done at once: (survivors of each rung)."""
    alive = sorted(names)
    for rung, count in enumerate(keep):
        alive = sorted(alive, key=lambda name: (measured(name, rung), name))[:count]
        yield set(alive)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 8))
def test_halving_ends_as_if_all_had_reported_at_once_whatever_the_cluster(seed, slots):
    world = World(lambda name, rung: distance(name, rung, seed))
    assert world.drive(slots, random.Random(seed))
    names = [trial_name(c) for c in GRID.explicit]
    first, second = halved(names, world.measured, (3, 1))
    for name in names:
        expected = ("completed", 2) if name in second else ("stopped", 1 if name in first else 0)
        assert world.endings[name] == expected
    assert world.endings["unconditional"] == ("completed", 2)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 8),
    cut=st.integers(1, 40),
    rule=st.sampled_from(["halving", "asha"]),
)
def test_a_search_cut_at_any_turn_goes_on_from_its_records(seed, slots, cut, rule):
    finals = FinalsConfig(finalists=2, seeds=2, budget_kimg=8)
    rungs = RUNGS.model_copy(update={"rule": rule})
    grid = CandidatesConfig(low=2, count=4, refine=2)
    whole, parts = (
        World(lambda n, r: distance(n, r, seed), grid=grid, rungs=rungs, finals=finals, c_max=60) for _ in range(2)
    )
    assert whole.drive(slots, random.Random(seed))
    rng = random.Random(seed + 1)
    while not parts.drive(slots, rng, cut):
        kept = [(d.trial, d.rung, d.status) for d in parts.decisions if d.status != "waiting"]
        assert len(kept) == len(set(kept)), "something was decided twice"
        cut += 5
    assert [d.sequence for d in parts.decisions] == list(range(1, len(parts.decisions) + 1))
    if rule == "halving":
        assert parts.endings == whole.endings
        assert parts.waves == whole.waves


def test_a_trial_waits_without_being_asked_for_until_its_place_is_certain():
    live = contest(grid=CandidatesConfig(explicit=(2, 3, 4, 5)))
    tasks = []
    while (task := live.agenda.ask(free_fits=9, free_trials=9)) is not None:
        tasks.append(task)
        if isinstance(task, FitTask):
            live.agenda.tell_fit(task.num_clusters, task.repeat, task.num_clusters)
    decision, new = live.judge(report("c00002", 0, 5.0))
    assert (decision.status, new) == ("waiting", (decision,))
    assert decision.reason == "waits at 1 kimg: 5, for 3 trials still to come"
    live.agenda.forget(TrainTask(num_clusters=2))
    assert live.agenda.ask(free_fits=9, free_trials=9) is None
    # 3 is better, 4 too: two of four go on, so 2 is out before 5 has reported.
    assert live.judge(report("c00003", 0, 3.0))[0].status == "waiting"
    _, new = live.judge(report("c00004", 0, 4.0))
    # And 3 can be second at the worst.
    assert [(d.trial, d.status) for d in new] == [("c00004", "waiting"), ("c00002", "stopped"), ("c00003", "running")]
    assert (new[1].cutoff, new[1].reason) == (4.0, "stopped at 1 kimg: 5, rung cutoff 4")
    # With the last one worse, 4 goes on too; and both may be asked for again.
    last, new = live.judge(report("c00005", 0, 4.5))
    assert (last.status, last.cutoff) == ("stopped", 4.0)
    assert [(d.trial, d.status) for d in new[1:]] == [("c00004", "running")]
    assert new[1].reason.endswith("one of the best 2 at this rung")
    for c in (3, 4):
        live.agenda.forget(TrainTask(num_clusters=c))
    again = {live.agenda.ask(free_fits=9, free_trials=9).name for _ in range(2)}
    assert again == {"c00003", "c00004"}
    # A repeated report gets the decision that stands.
    assert live.judge(report("c00003", 0, 3.0))[0].status == "running"


def test_a_failed_trial_is_waited_for_no_longer():
    world = World(failing=[("c00004", 0), ("c00003", 1)])
    assert world.drive(3, random.Random(0))
    statuses = [status for status, _ in world.endings.values()]
    assert statuses.count("completed") == 2
    assert "c00004" not in world.endings
    first = contest(grid=CandidatesConfig(explicit=(2, 3)))
    for c in (2, 3):
        first.agenda.tell_fit(c, 0, c)
    assert first.judge(report("c00002", 0, 2.0))[0].status == "waiting"
    # Its clusters failed, so it can never start.
    first.agenda.tell_end("c00003-r0")
    assert [(d.trial, d.status) for d in first.settle()] == [("c00002", "running")]


def test_a_diverged_trial_takes_no_place():
    live = contest(grid=CandidatesConfig(explicit=(2, 3)))
    assert live.judge(report("c00002", 0, 9.0))[0].status == "waiting"
    decision, new = live.judge(report("c00003", 0, float("nan")))
    assert decision.status == "diverged"
    assert [(d.trial, d.status) for d in new] == [("c00003", "diverged"), ("c00002", "running")]


def test_what_one_command_trains_by_itself_waits_for_nobody():
    search = contest()
    records = [report("c00002", 0, 5.0)]
    search.judge(records[0])
    alone = contest(goal=Goal(kind="trial", num_clusters=2))
    alone.agenda.tell_fit(2, 0, 2)
    alone.replay(records, search.asha.decisions)
    assert not alone.agenda.finished
    assert [d.reason for d in alone.settle()] == ["goes on at 1 kimg: 5, trained by itself"]
    for rung in (1, 2):
        records.append(report("c00002", rung, 9.0))
        alone.judge(records[-1])
    assert alone.agenda.finished
    # The search takes that over, and holds others against it.
    later = contest()
    later.replay(records, alone.asha.decisions)
    for c, value in ((3, 4.0), (4, 4.5), (5, 4.8)):
        later.judge(report(trial_name(c), 0, value))
    assert later.judge(report("c00006", 0, 4.9))[0].status == "stopped"


def test_replay_refuses_a_changed_report_of_a_trial_that_waited():
    live = contest(grid=CandidatesConfig(explicit=(2, 3)))
    records = [report("c00002", 0, 5.0), report("c00003", 0, 4.0)]
    for one in records:
        live.judge(one)
    assert [d.status for d in live.asha.decisions] == ["waiting", "running", "stopped"]
    contest(grid=CandidatesConfig(explicit=(2, 3))).replay(records, live.asha.decisions)
    changed = [records[0], report("c00003", 0, 6.0)]
    with pytest.raises(ValueError, match="decision 2 on c00003 at rung 0 was 'running' and is 'stopped'"):
        contest(grid=CandidatesConfig(explicit=(2, 3))).replay(changed, live.asha.decisions)


def test_no_trial_is_stopped_within_the_grace_period():
    world = World(rungs=RUNGS.model_copy(update={"grace_kimg": 2}))
    assert world.drive(2, random.Random(0))
    firsts = [d for d in world.decisions if d.rung == 0]
    assert {d.status for d in firsts} == {"running"}
    assert "within the grace period" in next(d.reason for d in firsts if d.trial == "c00002")
    # The first rung that judges has all six, and one goes on as at any second rung.
    (survivors,) = list(halved([trial_name(c) for c in GRID.explicit], lambda n, _: distance(n, 1), (1,)))
    assert {n for n, (status, _) in world.endings.items() if status == "completed"} == survivors | {"unconditional"}


def test_refinement_halves_the_bracket_of_a_curve_with_one_minimum():
    # The minimum lies at C = 11.3; log-spaced 2, 8, 32, 128 find 8, whose neighbors' middles are 4 and 16.
    def valley(name, rung):
        c = read_trial_name(name)[0]
        return 9.0 if c is None else 1 + abs(math.log2(c) - 3.5) + 1 / (rung + 1)

    world = World(valley, grid=CandidatesConfig(low=2, count=4, refine=2), c_max=128)
    assert world.drive(2, random.Random(0))
    # Of equal distances the smaller C is the better: 8 stays, then 11 beats it between 8 and 16.
    assert world.waves == [(4, 16), (6, 11)]
    assert world.endings["c00011"] == ("completed", 2)
    assert world.endings["c00004"] == ("stopped", 0)
    assert world.endings["c00006"] == ("stopped", 0)


def test_finalists_are_trained_again_and_the_winner_goes_on():
    finals = FinalsConfig(finalists=2, seeds=3, budget_kimg=8)
    world = World(finals=finals)
    assert world.drive(4, random.Random(0))
    completed = {name for name, (status, rung) in world.endings.items() if status == "completed"}
    first = [n for n in completed if n != "unconditional" and read_trial_name(n)[1] == 0]
    assert len(first) == 2, "as many are kept as may win"
    assert completed == {"unconditional", *first, *(f"{n}-s{s}" for n in first for s in (1, 2))}
    means = {n: sum(distance(m, 2) for m in (n, f"{n}-s1", f"{n}-s2")) / 3 for n in first}
    best = min(means, key=means.get)
    model = min((best, f"{best}-s1", f"{best}-s2"), key=lambda n: distance(n, 2))
    further = [d.trial for d in world.decisions if d.rung == 3]
    assert further == [model]
    assert world.endings[model] == ("completed", 3)


def test_a_winner_whose_last_stretch_fails_stays_the_winner():
    finals = FinalsConfig(budget_kimg=8)
    measured = {}

    def diverges(name, rung):
        return float("nan") if rung == 3 else measured.setdefault((name, rung), distance(name, rung))

    lost = [(f"{trial_name(c)}-final", 3) for c in GRID.explicit]
    for world in (World(diverges, finals=finals), World(finals=finals, failing=lost)):
        assert world.drive(1, random.Random(0))
        assert len(world.failed) + sum(d.rung == 3 for d in world.decisions) == 1
        after = contest(finals=finals, failed=world.failed)
        after.replay(world.reports.values(), world.decisions)
        assert after.agenda.finished
        names = [trial_name(c) for c in GRID.explicit]
        *_, last = halved(names, distance, (3, 1))
        assert {after.agenda.winner.trial} == last


@pytest.mark.parametrize("last", [1e9, None])
def test_what_the_last_stretch_measures_changes_nothing_that_the_search_found(last):
    """No C lies between 2 and 3; were 3 the best, 5 would be looked at."""
    values = {"c00002": 1.0, "c00003": 2.0, "c00008": 3.0, "unconditional": 9.0}
    world = World(
        measured=lambda trial, rung: last if rung == 3 else values[trial],
        grid=CandidatesConfig(explicit=(2, 3, 8), refine=1),
        rungs=AshaConfig(rungs_kimg=(1, 2, 4), grace_kimg=4),
        finals=FinalsConfig(budget_kimg=8),
    )
    assert world.drive(2, random.Random(0))
    assert ("c00002", 3) in world.reports
    assert "c00005" not in world.endings
    again = contest(**world.settings)
    again.replay(world.reports.values(), world.decisions)
    assert again.agenda.finished
    assert [task.num_clusters for wave in again.agenda.waves for task in wave] == list(again.agenda.grid)
