"""What tasks hold while they run, so that as many as fit run side by side and none takes another's memory.

A TEMI fit's memory is predicted from its shapes before it starts. It grows with C, so the fits of one search hold
different shares; they are rounded up to a few sizes, since Ray gives a process to the next task only if that asks for
the same.
"""

import math
from dataclasses import dataclass

from cedm_ray.clustering.plan import peak_bytes
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.agenda import FitTask, Task
from cedm_ray.search.space import SearchSpace

GIB = 2**30
_PROCESS_BYTES = GIB // 2
"""What a process takes for Python, torch and Ray before it does anything; 0.4 GiB were seen."""
_GPU_MARGIN = 1.15
"""For the context, workspaces and fragments of a GPU, which are in no prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Cores, GPUs (shares allowed) and bytes of host memory: of a cluster, or what a task holds."""

    cpus: float
    gpus: float
    memory_bytes: float = 0.0

    def __sub__(self, other: "Resources") -> "Resources":
        return Resources(
            cpus=self.cpus - other.cpus,
            gpus=self.gpus - other.gpus,
            memory_bytes=self.memory_bytes - other.memory_bytes,
        )

    def room_for(self, other: "Resources") -> int:
        """How many times `other` fits into this; a billionth is forgiven, as shares are added in floating point."""
        held = [(self.cpus, other.cpus), (self.gpus, other.gpus), (self.memory_bytes, other.memory_bytes)]
        return max(0, int(min(have / want + 1e-9 for have, want in held if want > 0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster as packing sees it.

    total: all that it holds. node_memory_bytes: host memory of its largest machine, which is the most that one task can
    have. gpu_bytes: memory of one GPU, None where there is none or it is not known.
    """

    total: Resources
    node_memory_bytes: float = float("inf")
    gpu_bytes: int | None = None


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
        return Resources(cpus=trial.workers * trial.cpus, gpus=trial.workers * gpus)
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
        memory = _rounded_up(predicted + _PROCESS_BYTES)
        most = min(cluster.node_memory_bytes, cluster.total.memory_bytes)
        return Resources(cpus=fit.cpus, gpus=0.0, memory_bytes=min(memory, most))
    if fit.gpus is None and cluster.gpu_bytes:
        # In quarters, of which a GPU has a whole number.
        gpus = min(1.0, max(gpus, math.ceil(4 * _GPU_MARGIN * predicted / cluster.gpu_bytes) / 4))
    return Resources(cpus=fit.cpus, gpus=gpus)


def _rounded_up(size: float) -> float:
    """The next power of two in GiB, at least one."""
    return GIB * 2.0 ** max(0, math.ceil(math.log2(size / GIB)))
