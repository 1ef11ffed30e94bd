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

`--ray` also runs a search of trials of 2 GPUs on a real Ray cluster of two machines with 4 fake GPUs each, whose tasks
sleep, and simulates it with the starts that it took there.
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
C_MAX = 1500
RUNGS_KIMG = (15_000, 40_000, 100_000)
IMAGES_PER_S = 2300
SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long everything takes, in seconds, and how good the models are. factor: all times but starts are divided by
    it. start: of (workers)."""

    seed: int
    gpus: int
    start: tuple[float, float] = (8.0, 20.0)
    factor: float = 1.0

    def started(self, task: Task) -> float:
        return self.start[0] if isinstance(task, FitTask) or self.gpus == 1 else self.start[1]

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
    most = 0

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
            ready = now + times.started(task)
            if isinstance(task, FitTask):
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


def check_against_ray(factor: float) -> dict[str, float]:
    """The same search on Ray with fake GPUs, and simulated with the starts that it took there."""
    from driver_overhead import pretended, search
    from driver_overhead import space_of as small_space

    times = Times(seed=0, gpus=2, factor=factor)
    # Ray reads its environment when it is first imported, and what is imported above sets it.
    import ray
    from ray.cluster_utils import Cluster as Machines

    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    # One worker of two GPUs: a nested run would sleep just the same, and start three more processes.
    sections = space_of(2, 12, bound={"alpha": 0.9, "c_start": 40, "c_limit": 40}).model_dump(mode="json")
    sections["resources"] = {"fit": {"at_once": 8, "cpus": 0.1}, "trial": {"workers": 1, "gpus": 2, "cpus": 0.1}}
    sections["candidates"] = {"explicit": list(range(2, 14))}
    chosen = {name: sections[name] for name in ("bound", "candidates", "rungs", "resources")}
    space = small_space(folder / "images", **chosen)
    node = {"num_cpus": 2, "num_gpus": 4, "object_store_memory": 80_000_000}
    machines = Machines(
        initialize_head=True, head_node_args={**node, "include_dashboard": False, "temp_dir": str(folder / "ray")}
    )
    try:
        machines.add_node(**node)
        ray.init(address=machines.address, log_to_driver=False, logging_level="error")
        study = Study(folder / "study")
        task = pretended(times.fit, lambda c: c, lambda c, rung: (times.rung(c, rung)[0], times.rung(c, rung)[2]))
        search(study, space, task)
        found = {path.stem: json.loads(path.read_text()) for path in sorted((study.path / "intervals").iterdir())}
        ray.shutdown()
    finally:
        machines.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    begin = min(interval[1] for interval in found.values())
    spans = [(start - begin, end - begin, gpus) for gpus, start, end in found.values()]
    firsts = sorted(start - begin for name, (_, start, _) in found.items() if name.endswith("-0"))
    gaps = idle_gaps(spans)
    cluster = Cluster(nodes=tuple(Node(name=name, cpus=2, gpus=4) for name in "ab"))
    same = Times(seed=0, gpus=2, factor=factor, start=(0.0, float(np.mean(gaps)) if gaps else 0.0))
    return {
        "ray_busy": round(busy_until(spans, firsts[-1], 8), 4),
        "ray_last_start_s": round(firsts[-1], 1),
        "ray_trials": len(firsts),
        "ray_mean_gap_s": round(float(np.mean(gaps)) if gaps else 0.0, 2),
        "simulated": simulated_for(space, cluster, same),
    }


def idle_gaps(spans: list[tuple[float, float, float]]) -> list[float]:
    """For every interval that begins after some trial ended for good: how long its GPUs had been free."""
    ends, gaps = sorted(end for _, end, _ in spans), []
    for begin, _, _ in sorted(spans)[4:]:
        before = [end for end in ends if end <= begin]
        if before:
            gaps.append(begin - before[-1])
    return gaps


def simulated_for(space: SearchSpace, cluster: Cluster, times: Times) -> dict[str, float]:
    outcome = simulate(space, cluster, times)
    return {"busy": round(outcome.busy, 4), "last_start_s": round(outcome.last_start_s, 1), "trials": outcome.trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="searches of each size of trial")
    parser.add_argument("--ray", action="store_true", help="check the simulation against Ray with 8 fake GPUs")
    parser.add_argument("--factor", type=float, default=1500.0, help="how much faster the clock runs under --ray")
    arguments = parser.parse_args()
    cluster = Cluster(nodes=tuple(Node(name=f"n{i}", cpus=64, gpus=GPUS_EACH) for i in range(NODES)))
    started = time.process_time()
    rows = []
    for gpus in (1, 2, 4):
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
        "busy_by_gpus": {g: round(min(o.busy for size, _, o, _ in rows if size == g), 4) for g in (1, 2, 4)},
        "busy_waiting": round(min(waiting.busy for _, _, _, waiting in rows), 4),
        "goal": GOAL,
        "process_s": round(time.process_time() - started, 1),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }
    if arguments.ray:
        result["check"] = check_against_ray(arguments.factor)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
