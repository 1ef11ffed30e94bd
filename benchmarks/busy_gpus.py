"""How busy a search keeps a cluster's GPUs: `python benchmarks/busy_gpus.py`.

A discrete simulation of 64 GPUs on 8 machines. The project's own driver decides everything: agenda, bound search,
packing machine by machine and the rung rule are those of a real search, and its records are written; only the clock and
the work are simulated. One search for each size of trial, of 1, 2 and 4 GPUs, with three times as many C as trials fit
side by side, so that trials have to follow each other as others are stopped early. Times are those of CIFAR-10 on a GPU
that trains 2,300 images a second (design/performance.md, 2.4), 5 % slower with each doubling of GPUs; every trial's
speed varies by 10 %, a start takes 8 s (20 s for several workers), a fit 40 to 120 s, and an evaluation a minute. What
counts as busy is training alone: starts, evaluations and fits are losses.

`busy` is the share of the cluster's GPU time spent in training until the last trial starts, the least of the three
sizes and seeds, and `ratio` is that over the goal, 0.92. Beside it stands the same search if no C trained before the
bound is known (`busy_waiting`).

`--ray` also runs the same searches on a real Ray cluster of two machines with 4 fake GPUs each, whose tasks sleep, and
simulates each of them with the starts that it took there, in their order. The clock runs so much faster there that the
way to the first rung takes `--first-rung` seconds, so that what a start costs weighs some hundred times as much as in
a real search: what is checked is that the simulation tells what Ray does, and not the goal.
"""

import argparse
import contextlib
import heapq
import json
import math
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cedm_ray.data.image_set import ImageSet
from cedm_ray.search.agenda import Agenda
from cedm_ray.search.driver import Driver
from cedm_ray.search.goals import FitTask, Goal, Task
from cedm_ray.search.packing import Cluster, Node
from cedm_ray.search.results import TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study

GOAL = 0.92
NODES, GPUS_EACH = 8, 8
RAY_NODES, RAY_GPUS_EACH = 2, 4
C_MAX = 1500
RUNGS_KIMG = (15_000, 40_000, 100_000)
IMAGES_PER_S = 2300
SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long everything takes, in seconds, and how good the models are. factor: all times but starts are divided by
    it. start: of one process, and of several. seen: what the starts of fits and those of trials took that were seen, in
    their order; the last of each stands for all later ones. None = `start`."""

    seed: int
    gpus: int
    start: tuple[float, float] = (8.0, 20.0)
    seen: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    factor: float = 1.0

    def started(self, task: Task, number: int) -> float:
        """Of a task; number: of a fit among the fits and of a trial among the trials, from 0."""
        fit = isinstance(task, FitTask)
        if self.seen is not None:
            seen = self.seen[0 if fit else 1]
            return seen[min(number, len(seen) - 1)]
        return self.start[0] if fit or self.gpus == 1 else self.start[1]

    def fit(self, num_clusters: int) -> float:
        return (40 + 80 * min(1.0, num_clusters / 3200)) / self.factor

    def used(self, num_clusters: int) -> int:
        """All clusters up to C_MAX, and half of them above."""
        return num_clusters if num_clusters <= C_MAX else num_clusters // 2

    def rung(self, num_clusters: int | None, rung: int) -> tuple[float, float, float]:
        """Seconds of training up to a rung, seconds of its evaluation, and the distance there: a parabola in log C,
        what is still to be learned, and noise."""
        speed = random.Random(f"{self.seed}-{num_clusters}").gauss(1, 0.1)
        images = 1000 * (RUNGS_KIMG[rung] - (RUNGS_KIMG[rung - 1] if rung else 0))
        rate = IMAGES_PER_S * self.gpus * 0.95 ** math.log2(self.gpus) * max(0.5, speed)
        distance = 2.0 + 0.15 * math.log2((num_clusters or 1) / 100) ** 2 + (1.5, 0.5, 0.0)[rung]
        noise = random.Random(f"{self.seed}-{num_clusters}-{rung}").gauss(1, 0.03)
        return images / rate / self.factor, 60 / self.factor, distance * noise


def space_of(gpus: int, count: int, **sections) -> SearchSpace:
    """A space with `count` C spaced in log C, all named, so that what is inside the bound can be known early."""
    ladder = {round(2 * (C_MAX / 2) ** (i / (4 * count))) for i in range(4 * count + 1)}
    chosen = sorted(ladder)[:: max(1, len(ladder) // count)][:count]
    plain = {
        "name": "busy",
        "images": {"source": "none"},
        "bound": {"c_start": 50},
        "candidates": {"explicit": chosen},
        "rungs": {"rungs_kimg": RUNGS_KIMG},
        "resources": {"fit": {"at_once": 32}, "trial": {"workers": gpus, "gpus": 1}},
    }
    return SearchSpace.model_validate(plain | sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """busy: share of the GPU time spent in training until the last trial starts. last_start_s: when that was.
    most_at_once: trials side by side. trials, stopped: how many there were and how many a rung stopped."""

    busy: float
    last_start_s: float
    most_at_once: int
    trials: int
    stopped: int


def simulate(space: SearchSpace, cluster: Cluster, times: Times) -> Outcome:
    """A whole search of the real driver against a simulated clock."""
    folder = Path(tempfile.mkdtemp(prefix="busy-", dir=SCRATCH))
    images = ImageSet(
        name="none",
        names=tuple(f"{i}" for i in range(4000)),
        pixels=np.zeros((4000, 3, 1, 1), dtype=np.uint8),
        digest="0" * 64,
    )
    study = Study(folder / "study")
    try:
        driver = Driver(
            study=study,
            space=space,
            goal=Goal(kind="search"),
            images=images,
            cluster=lambda: cluster,
            show=lambda event: None,
        )
        return _run(driver, study, cluster, times)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(driver: Driver, study: Study, cluster: Cluster, times: Times) -> Outcome:
    now, events, order = 0.0, [], 0
    trained: list[tuple[float, float, float]] = []
    starts: list[float] = []
    most = fits = 0

    def later(at: float, name: str, rung: int) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (at, order, name, rung))

    def train(name: str, rung: int, at: float) -> None:
        task, held = driver.live[name]
        seconds, evaluation, _ = times.rung(task.num_clusters, rung)
        trained.append((at, at + seconds, held.gpus))
        later(at + seconds + evaluation, name, rung)

    while not driver.finished:
        while (found := driver.next_task()) is not None:
            task, _ = found
            ready = now + times.started(task, fits if isinstance(task, FitTask) else len(starts))
            if isinstance(task, FitTask):
                fits += 1
                later(ready + times.fit(task.num_clusters), task.name, -1)
            else:
                starts.append(now)
                train(task.name, 0, ready)
        most = max(most, sum(not isinstance(task, FitTask) for task, _ in driver.live.values()))
        for name in driver.agenda.unneeded & driver.live.keys():
            driver.end(name)
        if not events:
            break
        now, _, name, rung = heapq.heappop(events)
        if name not in driver.live:
            continue
        task, _ = driver.live[name]
        if rung < 0:
            used = times.used(task.num_clusters)
            fit = FitRecord(num_clusters=task.num_clusters, repeat=task.repeat, num_used=used, loss=0.0, seconds=1.0)
            labels = np.resize(np.arange(used, dtype=np.int32), 4000)
            study.write_fit(fit, name, {"labels": labels}, {"method": "temi"})
            driver.end(name)
            continue
        report = TrialReport.played(
            name, rung, times.rung(task.num_clusters, rung)[2], images_seen=1000 * RUNGS_KIMG[rung], num_samples=8
        )
        if driver.judge(report).status == "running":
            train(name, rung + 1, now)
        else:
            driver.end(name)
    assert driver.agenda.finished, f"the search stopped at {now:.0f} s with {list(driver.live)}"
    statuses = [decision.status for decision in driver.asha.decisions]
    return Outcome(
        busy=busy_until(trained, starts[-1], cluster.total.gpus),
        last_start_s=starts[-1],
        most_at_once=most,
        trials=len(starts),
        stopped=statuses.count("stopped"),
    )


def busy_until(trained: list[tuple[float, float, float]], last: float, gpus: float) -> float:
    """The share of GPU time from 0 to `last` within the intervals (beginning, end, GPUs) of training."""
    return sum(max(0.0, min(end, last) - begin) * held for begin, end, held in trained) / (gpus * last)


@contextlib.contextmanager
def nothing_early() -> Iterator[None]:
    """No C trains before the bound is known, as it was before `Agenda.certain`."""
    before = Agenda.certain
    Agenda.certain = property(lambda agenda: agenda.candidates or ())
    try:
        yield
    finally:
        Agenda.certain = before


def check_against_ray(gpus: int, first_rung_s: float) -> dict[str, float]:
    """The same search on Ray with fake GPUs, and simulated with the starts that it took there."""
    from driver_overhead import pretended, search
    from driver_overhead import space_of as small_space

    real = Times(seed=0, gpus=gpus)
    times = Times(seed=0, gpus=gpus, factor=real.rung(2, 0)[0] / first_rung_s)
    # Ray reads its environment when it is first imported, and what is imported above sets it.
    import ray
    from ray.cluster_utils import Cluster as Machines

    count = 3 * RAY_NODES * RAY_GPUS_EACH // gpus
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    # One process for all GPUs of a trial: the workers of a nested one would sleep just the same.
    sections = space_of(gpus, count, bound={"alpha": 0.9, "c_start": 40, "c_limit": 40}).model_dump(mode="json")
    sections["resources"] = {"fit": {"at_once": 8, "cpus": 0.1}, "trial": {"workers": 1, "gpus": gpus, "cpus": 0.1}}
    sections["candidates"] = {"explicit": list(range(2, 2 + count))}
    chosen = {name: sections[name] for name in ("bound", "candidates", "rungs", "resources")}
    space = small_space(folder / "images", **chosen)
    node = {"num_cpus": 2, "num_gpus": RAY_GPUS_EACH, "object_store_memory": 80_000_000}
    machines = Machines(
        initialize_head=True, head_node_args={**node, "include_dashboard": False, "temp_dir": str(folder / "ray")}
    )
    try:
        for _ in range(RAY_NODES - 1):
            machines.add_node(**node)
        ray.init(address=machines.address, log_to_driver=False, logging_level="error")
        study = Study(folder / "study")
        task = pretended(times.fit, lambda c: c, lambda c, rung: (times.rung(c, rung)[0], times.rung(c, rung)[2]))
        with asked() as when:
            search(study, space, task)
        found, fitted = (
            {path.stem: json.loads(path.read_text()) for path in (study.path / kind).iterdir()}
            for kind in ("intervals", "fitted")
        )
        ray.shutdown()
    finally:
        machines.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    # All on one machine, so that there is one clock.
    trials = {name: at for name, at in when.items() if f"{name}-0" in found}
    begin = min(when.values())
    spans = [(start - begin, end - begin, held) for held, start, end in found.values()]
    starts = [found[f"{name}-0"][1] - at for name, at in trials.items()]
    fit_starts = [fitted[name] - at for name, at in when.items() if name in fitted]
    last = max(trials.values()) - begin
    cluster = Cluster(nodes=tuple(Node(name=f"{i}", cpus=2, gpus=RAY_GPUS_EACH) for i in range(RAY_NODES)))
    same = Times(seed=0, gpus=gpus, factor=times.factor, seen=(tuple(fit_starts), tuple(starts)))
    outcome = simulate(space, cluster, same)
    no_start = Times(seed=0, gpus=gpus, factor=times.factor, start=(0.0, 0.0))
    return {
        "ray_busy": round(busy_until(spans, last, cluster.total.gpus), 4),
        "simulated_busy": round(outcome.busy, 4),
        "simulated_busy_without_starts": round(simulate(space, cluster, no_start).busy, 4),
        "ray_last_start_s": round(last, 1),
        "simulated_last_start_s": round(outcome.last_start_s, 1),
        "ray_trials": len(trials),
        "simulated_trials": outcome.trials,
        "mean_start_s": round(float(np.mean(starts)), 2),
        "median_start_s": round(float(np.median(starts)), 2),
    }


@contextlib.contextmanager
def asked() -> Iterator[dict[str, float]]:
    """When the driver gave out each task, in monotonic seconds, by the task's name."""
    when: dict[str, float] = {}
    before = Driver.next_task

    def noted(driver: Driver):
        found = before(driver)
        if found is not None:
            when.setdefault(found[0].name, time.monotonic())
        return found

    Driver.next_task = noted
    try:
        yield when
    finally:
        Driver.next_task = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="searches of each size of trial")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4], help="GPUs of a trial")
    parser.add_argument("--ray", action="store_true", help="check the simulation against Ray with 8 fake GPUs")
    parser.add_argument("--first-rung", type=float, default=20.0, help="seconds to the first rung under --ray")
    arguments = parser.parse_args()
    cluster = Cluster(nodes=tuple(Node(name=f"n{i}", cpus=64, gpus=GPUS_EACH) for i in range(NODES)))
    started = time.process_time()
    rows = []
    for gpus in arguments.sizes:
        slots = NODES * GPUS_EACH // gpus
        space = space_of(gpus, 3 * slots)
        for seed in range(arguments.seeds):
            outcome = simulate(space, cluster, Times(seed=seed, gpus=gpus))
            with nothing_early():
                waiting = simulate(space, cluster, Times(seed=seed, gpus=gpus))
            rows.append((gpus, seed, outcome, waiting))
            print(
                f"{gpus} GPUs a trial, seed {seed}: busy {outcome.busy:.3f} until the last of {outcome.trials} trials "
                f"started at {outcome.last_start_s / 3600:.2f} h; at most {outcome.most_at_once} of {slots} at once, "
                f"{outcome.stopped} stopped; with nothing early {waiting.busy:.3f}",
                file=sys.stderr,
            )
    least = min(outcome.busy for _, _, outcome, _ in rows)
    result = {
        "ratio": round(least / GOAL, 4),
        "busy": round(least, 4),
        "busy_by_gpus": {g: round(min(o.busy for size, _, o, _ in rows if size == g), 4) for g in arguments.sizes},
        "busy_waiting": round(min(waiting.busy for _, _, _, waiting in rows), 4),
        "goal": GOAL,
        "process_s": round(time.process_time() - started, 1),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }
    if arguments.ray:
        result["check"] = {}
        for gpus in arguments.sizes:
            result["check"][gpus] = check_against_ray(gpus, arguments.first_rung)
            print(f"{gpus} GPUs a trial on Ray: {result['check'][gpus]}", file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
