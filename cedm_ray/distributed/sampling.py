"""Sampling over a cluster: plain actors, each with its own copy of the models, fed with shares of the seeds.

A share is contiguous and at most a batch (with rejection, a few), and goes to whoever is free; the images come back in
the order of the seeds. Only a few shares a worker are under way or waiting for an earlier one, so that what is held
does not grow with the number of images.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray

from cedm_ray.distributed.inventory import cluster_resources
from cedm_ray.distributed.session import REPEATABLE, get, ray_cluster
from cedm_ray.distributed.tasks import choose_device
from cedm_ray.search.packing import Resources
from cedm_ray.search.sampling import SampleJob, Samples, open_sampler

_SHARES_IN_FLIGHT, _SHARES_HELD = 2, 4


@ray.remote(**REPEATABLE)
class _SamplingWorker:
    """One copy of the models. What it is asked for is a function of the seeds, so that asking again is safe."""

    def __init__(self, job: SampleJob, gpus: float) -> None:
        self.job, self.gpus, self.sampler = job, gpus, None

    def open(self) -> None:
        """Not done when the worker is made: what is raised here arrives as it is."""
        if self.sampler is None:
            self.sampler = open_sampler(self.job, choose_device(self.gpus))

    def generate(self, seeds: Sequence[int]) -> Samples:
        """The images of a share of the seeds, as one batch."""
        self.open()
        return _joined(list(self.sampler.generate(seeds)))


def sample_on_cluster(job: SampleJob, seeds: Sequence[int], *, address: str | None = None) -> Iterator[Samples]:
    """What `Sampler.generate` yields for the seeds, computed by one worker a GPU, or a core where there is none.

    address: as `ray_cluster`; the connection lasts as long as the generator. Raises TryAgainError where a worker is
    lost more than twice, and what the workers raise.
    """
    with ray_cluster(address):
        yield from _sample(job, seeds, cluster_resources())


def _sample(job: SampleJob, seeds: Sequence[int], cluster: Resources) -> Iterator[Samples]:
    gpus = 1.0 if cluster.gpus >= 1 else 0.0
    places = int(cluster.gpus if gpus else cluster.cpus) or 1
    rows = min(job.rows_at_once, -(-len(seeds) // places)) or 1
    shares = [seeds[start : start + rows] for start in range(0, len(seeds), rows)]
    options = {"num_cpus": 1, "num_gpus": gpus}
    workers = [_SamplingWorker.options(**options).remote(job, gpus) for _ in range(min(places, len(shares)))]
    try:
        # A worker gets its first shares once it has answered: one that finds no place holds up nothing.
        # Not asked again, or Ray would report each that still waits for a place at the end.
        opening = {worker.open.options(max_task_retries=0).remote(): worker for worker in workers}
        free: deque[Any] = deque()
        calls: dict[Any, tuple[int, Any]] = {}
        finished: dict[int, Samples] = {}
        given = told = 0
        while told < len(shares):
            while free and given < min(len(shares), told + _SHARES_HELD * len(workers)):
                worker = free.popleft()
                calls[worker.generate.remote(shares[given])] = (given, worker)
                given += 1
            (call,), _ = ray.wait([*calls, *opening], num_returns=1)
            done = get(call)
            if call in opening:
                free.extend([opening.pop(call)] * _SHARES_IN_FLIGHT)
                continue
            index, worker = calls.pop(call)
            free.append(worker)
            finished[index] = done
            while told in finished:
                yield finished.pop(told)
                told += 1
    finally:
        for worker in workers:
            ray.kill(worker)


def _joined(parts: list[Samples]) -> Samples:
    conditional = all(part.clusters is not None for part in parts)
    return Samples(
        seeds=np.concatenate([part.seeds for part in parts]),
        images=np.concatenate([part.images for part in parts]),
        clusters=np.concatenate([part.clusters for part in parts]) if conditional else None,
        decided=sum(part.decided for part in parts),
        drawn=sum(part.drawn for part in parts),
    )
