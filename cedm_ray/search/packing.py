"""What tasks hold while they run, and on which machine of the cluster, so that as many as fit run side by side.

A TEMI fit's memory is predicted from its shapes before it starts. It grows with C, so the fits of one search hold
different shares; they are rounded up to a few sizes, since Ray gives a process to the next task only if that asks for
the same.

Of the features, which are most of it for small C, that prediction counts a copy for every process. On a GPU each fit
has one: Ray gives every fit that runs a process of its own, and processes do not share a device's memory, nor its
context. Only fits of one process do (`fit_temi` with one `TemiData`, and the fits that follow each other in a process).
On a CPU the processes of a machine map the same file, whose pages are there once, unless `feature_norm` has each make
rows of its own; together they then take less than was counted.

Ray counts a cluster's resources machine by machine, and a GPU's shares GPU by GPU; so does this file, since otherwise a
task would be handed out that finds no place and waits without a word. Where a task goes is decided here and not left to
Ray, which spreads shares of a GPU over the machines until no whole trial fits on any.
"""

import math
from dataclasses import dataclass, replace

from cedm_ray.clustering.plan import peak_bytes
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.goals import FitTask, Task
from cedm_ray.search.space import SearchSpace

GIB = 2**30
PROCESS_BYTES = GIB // 2
"""What a process takes for Python, torch and Ray before it does anything; 0.4 GiB were seen."""
_GPU_MARGIN = 1.15
"""For the context, workspaces and fragments of a GPU, which are in no prediction."""
_UNITS = 10_000
"""Ray counts cores and GPUs in whole ten-thousandths, rounded, so that seven shares of 1/7 do not fit on one GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Cores, GPUs (shares allowed) and bytes of host memory: of a cluster, or what a task holds.

    workers: processes that hold it in equal parts, each on one machine. nodes: the machine of each by its name; empty
    while the task has no place.
    """

    cpus: float
    gpus: float
    memory_bytes: float = 0.0
    workers: int = 1
    nodes: tuple[str, ...] = ()

    @property
    def each(self) -> "Resources":
        """What one worker holds."""
        count = self.workers
        return Resources(cpus=self.cpus / count, gpus=self.gpus / count, memory_bytes=self.memory_bytes / count)

    def on(self, nodes: tuple[str, ...]) -> "Resources":
        """The same with its place."""
        return replace(self, nodes=nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster. name: Ray's id of it. cpus, gpus, memory_bytes: what it gives to tasks in all."""

    name: str
    cpus: float
    gpus: float = 0.0
    memory_bytes: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster as packing sees it. gpu_bytes: memory of one GPU, None where there is none or it is not known."""

    nodes: tuple[Node, ...]
    gpu_bytes: int | None = None

    @property
    def total(self) -> Resources:
        """All that it holds."""
        return Resources(
            cpus=sum(node.cpus for node in self.nodes),
            gpus=sum(node.gpus for node in self.nodes),
            memory_bytes=sum(node.memory_bytes for node in self.nodes),
        )

    @property
    def node_memory_bytes(self) -> float:
        """Host memory of its largest machine, which is the most that one task can have."""
        return max((node.memory_bytes for node in self.nodes), default=0.0)


class Room:
    """What is free on every machine of a cluster, GPU by GPU, while tasks take places on it."""

    def __init__(self, cluster: Cluster) -> None:
        self._free = {node.name: _FreeNode(node) for node in cluster.nodes}
        self._whole = cluster

    def place(self, wanted: Resources, *, beside: Resources | None = None) -> tuple[str, ...] | None:
        """The machine of each worker of a task, or None where it does not fit now. Nothing is taken yet.

        A task that one machine of the cluster could hold goes whole on one, and waits for it where none is free enough:
        its workers exchange gradients at every step. Only a larger one is spread, over as few machines as hold it.
        beside: what other tasks hold that should lose as few places as possible (a share of a GPU goes where it breaks
        no whole trial's place); among equals the fullest machine is taken.
        """
        each, count = wanted.each, wanted.workers
        able = [node for node in self._free.values() if node.count(each) >= count]
        if able:
            best = min(able, key=lambda node: (node.loss(each, count, beside), node.tightness(each)))
            return (best.name,) * count
        if any(_FreeNode(node).count(each) >= count for node in self._whole.nodes):
            return None
        places: list[str] = []
        for node in sorted(self._free.values(), key=lambda node: (-node.count(each), node.tightness(each))):
            places += [node.name] * min(node.count(each), count - len(places))
        return tuple(places) if len(places) == count else None

    def take(self, held: Resources) -> None:
        """Take what a task holds off where it lies. What lay on a machine that is gone is gone with it."""
        for name in held.nodes:
            if name in self._free:
                self._free[name].take(held.each)

    def count(self, wanted: Resources, most: int = 1_000_000) -> int:
        """How many more tasks fit that hold so much, at most `most`."""
        if wanted.workers == 1:
            return min(most, sum(node.count(wanted) for node in self._free.values()))
        room, found = self._copy(), 0
        while found < most and (nodes := room.place(wanted)) is not None:
            room.take(wanted.on(nodes))
            found += 1
        return found

    def _copy(self) -> "Room":
        room = Room(self._whole)
        room._free = {name: node.copy() for name, node in self._free.items()}
        return room


class _FreeNode:
    """What is free on one machine; cores and GPUs in units, the GPUs one by one."""

    def __init__(self, node: Node) -> None:
        self.name = node.name
        self.cpus, self.gpus = _units(node.cpus), [_UNITS] * int(node.gpus)
        self.memory_bytes = node.memory_bytes

    def copy(self) -> "_FreeNode":
        twin = _FreeNode(Node(name=self.name, cpus=0, memory_bytes=self.memory_bytes))
        twin.cpus, twin.gpus = self.cpus, list(self.gpus)
        return twin

    def count(self, each: Resources) -> int:
        """How many workers fit that hold so much."""
        found = [1_000_000]
        if each.cpus > 0:
            found.append(self.cpus // _units(each.cpus))
        if each.gpus >= 1:
            found.append(self.gpus.count(_UNITS) // int(each.gpus))
        elif each.gpus > 0:
            found.append(sum(gpu // _units(each.gpus) for gpu in self.gpus))
        if each.memory_bytes > 0:
            ratio = self.memory_bytes / each.memory_bytes
            found.append(1_000_000 if ratio == float("inf") else int(ratio + 1e-9))
        return max(0, min(found))

    def take(self, each: Resources) -> None:
        self.cpus -= _units(each.cpus)
        self.memory_bytes -= each.memory_bytes
        if each.gpus >= 1:
            for _ in range(int(each.gpus)):
                if _UNITS in self.gpus:
                    self.gpus[self.gpus.index(_UNITS)] = 0
        elif each.gpus > 0:
            share = _units(each.gpus)
            # As Ray does: the GPU with the least left that is enough.
            fitting = [index for index, gpu in enumerate(self.gpus) if gpu >= share]
            if fitting:
                self.gpus[min(fitting, key=lambda index: self.gpus[index])] -= share

    def loss(self, each: Resources, count: int, beside: Resources | None) -> tuple[int, int]:
        """How many fewer tasks like `beside` would fit here whole, and how many fewer of their workers."""
        if beside is None:
            return 0, 0
        after = self.copy()
        for _ in range(count):
            after.take(each)
        before_workers, after_workers = self.count(beside.each), after.count(beside.each)
        whole = before_workers // beside.workers - after_workers // beside.workers
        return whole, before_workers - after_workers

    def tightness(self, each: Resources) -> tuple[float, ...]:
        """Less where less is left: of the GPUs for a task on a GPU, of the cores for another."""
        gpus, cpus = sum(self.gpus), self.cpus
        return (gpus, cpus) if each.gpus else (cpus, gpus)


def _units(amount: float) -> int:
    return int(amount * _UNITS + 0.5)


def needs(space: SearchSpace, task: Task, cluster: Cluster, features_shape: tuple[int, int] | None = None) -> Resources:
    """What a task holds while it runs, all workers together.

    features_shape: (N, D) of the features that are clustered; None where they are not there yet, and then no memory is
    counted. A fit on a GPU holds at least the share that the space says, and more where its memory needs more; one that
    alone needs more than the largest machine has holds all of that and runs alone. Raises ConfigurationError where the
    space's memory budget is too small for the fit.
    """
    if not isinstance(task, FitTask):
        trial = space.resources.trial
        gpus = trial.gpus if trial.gpus is not None else (1.0 if cluster.total.gpus else 0.0)
        return Resources(cpus=trial.workers * trial.cpus, gpus=trial.workers * gpus, workers=trial.workers)
    fit = space.resources.fit
    gpus = fit.gpus if fit.gpus is not None else (0.25 if cluster.total.gpus else 0.0)
    if features_shape is None:
        return Resources(cpus=fit.cpus, gpus=gpus)
    device_type = "cuda" if gpus else "cpu"
    try:
        predicted = peak_bytes(*features_shape, task.num_clusters, space.clustering, device_type=device_type)
    except ValueError as error:
        raise ConfigurationError(f"clustering: {error}", mend="raise clustering.memory_budget_gib to that") from None
    if not gpus:
        memory = _rounded_up(predicted + PROCESS_BYTES)
        return Resources(cpus=fit.cpus, gpus=0.0, memory_bytes=min(memory, cluster.node_memory_bytes))
    if fit.gpus is None and cluster.gpu_bytes:
        # In quarters, of which a GPU has a whole number.
        gpus = min(1.0, max(gpus, math.ceil(4 * _GPU_MARGIN * predicted / cluster.gpu_bytes) / 4))
    return Resources(cpus=fit.cpus, gpus=gpus)


def _rounded_up(size: float) -> float:
    """The next power of two in GiB, at least one."""
    return GIB * 2.0 ** max(0, math.ceil(math.log2(size / GIB)))
