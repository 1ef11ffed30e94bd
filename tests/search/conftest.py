"""Searches that are only played: nothing is fitted, nothing is trained."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from cedm_ray.clustering.bound import BoundConfig, UpperBoundSearch
from cedm_ray.clustering.lower_bound import LowerBoundConfig
from cedm_ray.data.image_set import ImageSet
from cedm_ray.search.agenda import Agenda
from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.driver import Driver
from cedm_ray.search.goals import FitTask, Goal
from cedm_ray.search.packing import Cluster as Hardware
from cedm_ray.search.packing import Node
from cedm_ray.search.results import Notice, TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study

IMAGES = ImageSet(
    name="none",
    names=tuple(f"{i}.png" for i in range(1000)),
    pixels=np.zeros((1000, 3, 2, 2), dtype=np.uint8),
    digest="0" * 64,
)


def space_of(**sections):
    plain = {
        "name": "x",
        "images": {"source": "x"},
        "bound": {"alpha": 0.9, "c_start": 4, "c_limit": 64},
        "candidates": {"explicit": [2, 3, 4, 5, 6, 7]},
        "rungs": {"rungs_kimg": [1, 2], "reduction_factor": 2},
    }
    return SearchSpace.model_validate({**plain, **sections})


class Cluster:
    """Runs nothing: tasks end when a test says so."""

    def __init__(self, path, space, total=(8, 0), goal=None, nodes=None):
        self.nodes = nodes or {"one": total}
        self.study, self.space, self.shown = Study(path), space, []
        self.driver = Driver(
            study=self.study,
            space=space,
            goal=goal or Goal(kind="search"),
            images=IMAGES,
            cluster=self.hardware,
            show=self.shown.append,
        )

    def hardware(self):
        return Hardware(nodes=tuple(Node(name=name, cpus=cpus, gpus=gpus) for name, (cpus, gpus) in self.nodes.items()))

    def start_all(self):
        started = []
        while (found := self.driver.next_task()) is not None:
            started.append(found[0])
        return started

    def end_fit(self, c, used, repeat=0):
        record = FitRecord(num_clusters=c, repeat=repeat, num_used=used, loss=0.0, seconds=1.0)
        name = FitTask(num_clusters=c, repeat=repeat).name
        labels = np.resize(np.arange(used, dtype=np.int32), 1000)
        self.study.write_fit(record, name, {"labels": labels}, {"method": "temi"})
        self.driver.end(name)

    def report(self, trial, distance, rung=0):
        report = TrialReport.played(trial, rung, distance, images_seen=1000 * (rung + 1), num_samples=8)
        self.study.write_report(report)
        return self.driver.judge(report)

    def find_bound_of_4(self):
        """C = 8 uses half of its clusters, and so does all of the grid."""
        self.start_all()
        self.end_fit(4, 4)
        while self.driver.agenda.bound is None:
            for task, _ in list(self.driver.live.values()):
                # Those of the candidates below are under way already, and go on.
                if isinstance(task, FitTask) and task.num_clusters > 4:
                    self.end_fit(task.num_clusters, task.num_clusters // 2)
            self.start_all()
        assert self.driver.agenda.bound.c_max == 4

    @property
    def notices(self):
        return [event.text for event in self.shown if isinstance(event, Notice)]


@pytest.fixture(scope="session")
def played() -> SimpleNamespace:
    """What tests need to play a search."""
    return SimpleNamespace(Cluster=Cluster, space_of=space_of)


BOUND = BoundConfig(alpha=0.9, c_start=4, c_limit=100)
NO_LOWER_END = LowerBoundConfig()
GRID = CandidatesConfig(explicit=(2, 3, 4, 5, 6, 7, 8))


def new_agenda(
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


@pytest.fixture(scope="session")
def agendas() -> SimpleNamespace:
    """What tests need to follow an agenda."""
    return SimpleNamespace(new=new_agenda, curve_of=curve_of, sequential=sequential, work_off=work_off)
