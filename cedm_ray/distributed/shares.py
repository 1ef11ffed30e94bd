"""An evaluation over a cluster: plain actors, each with its own copy of the networks, that do units in turns.

Whoever does a unit forms the same batches, and the parts are handed on in the order of the units, so that the number of
workers changes nothing.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray

from cedm_ray.distributed.inventory import cluster_resources
from cedm_ray.distributed.session import REPEATABLE, get, ray_cluster
from cedm_ray.distributed.tasks import choose_device
from cedm_ray.evaluation.gathering import Part, Runner, Work, Worker
from cedm_ray.search.results import Progress, Show

_POLL_S = 2.0


@ray.remote(max_concurrency=2, **REPEATABLE)
class _EvaluationWorker:
    """One copy of the networks. It answers how far it is while it works. A unit is a function of the work, so that
    asking for it again is safe."""

    def __init__(self, work: Work, gpus: float) -> None:
        self.work, self.gpus = work, gpus
        self.worker: Worker | None = None
        self.done = 0

    def open(self) -> int:
        """Open everything. Not when the actor is made, where Ray would make its own of an error of ours."""
        if self.worker is None:
            self.worker = Worker(self.work, choose_device(self.gpus))
        return 0

    def run(self, unit: tuple[int, int]) -> tuple[Part, ...]:
        """Do one unit. Opens what it needs where it was started anew."""
        self.open()
        before, parts = self.done, ()
        for said in self.worker.run(unit):
            if isinstance(said, tuple):
                parts = said
            else:
                self.done = before + said
        return parts

    def images_done(self) -> int:
        """Images that it has put through its networks, all its units together."""
        return self.done


@contextlib.contextmanager
def cluster_runner(address: str | None, *, workers: int | None = None) -> Iterator[Runner]:
    """A Runner that does the units of a work on a Ray cluster, which is joined or started when it is first used.

    address: as `ray_cluster`. workers: how many processes; None = one for every GPU of the cluster, or for every core
    where there is none, but no more than there are units. Raises TryAgainError where a worker is lost more than twice.
    """
    with contextlib.ExitStack() as stack:

        def run(work: Work, show: Show) -> Iterator[tuple[Part, ...]]:
            if not ray.is_initialized():
                stack.enter_context(ray_cluster(address))
            return _run(work, workers, show)

        yield run


def _run(work: Work, workers: int | None, show: Show) -> Iterator[tuple[Part, ...]]:
    cluster = cluster_resources()
    gpus = 1.0 if cluster.gpus >= 1 else 0.0
    count = min(len(work.units), workers or int(cluster.gpus if gpus else cluster.cpus) or 1)
    actors: list[Any] = [_EvaluationWorker.options(num_cpus=1, num_gpus=gpus).remote(work, gpus) for _ in range(count)]
    waiting = list(enumerate(work.units))
    # A worker gets its first unit once it has answered: one that finds no place holds up nothing.
    # Not asked again, or Ray would report each that still waits for a place at the end.
    questions = {actor.open.options(max_task_retries=0).remote(): actor for actor in actors}
    calls: dict[Any, tuple[Any, int]] = {}
    images: dict[Any, int] = {}
    early: dict[int, tuple[Part, ...]] = {}
    idle: list[Any] = []
    due, total, asked = 0, work.num_sets * work.num_images, time.monotonic()
    try:
        while due < len(work.units):
            answered, _ = ray.wait([*calls, *questions], num_returns=1, timeout=_POLL_S)
            for call in answered:
                if call in questions:
                    actor = questions.pop(call)
                    if actor not in images:
                        idle.append(actor)
                    images[actor] = get(call)
                else:
                    actor, index = calls.pop(call)
                    early[index] = get(call)
                    idle.append(actor)
            while due in early:
                yield early.pop(due)
                due += 1
            # Not far ahead of what is due, so that parts which came early stay few.
            while idle and waiting and waiting[0][0] < due + 2 * count:
                index, unit = waiting.pop(0)
                actor = idle.pop(0)
                calls[actor.run.remote(unit)] = (actor, index)
            if time.monotonic() - asked >= _POLL_S:
                asked, silent = time.monotonic(), set(questions.values())
                questions |= {actor.images_done.remote(): actor for actor in images if actor not in silent}
            show(Progress(task=work.task, done=sum(images.values()), total=total, unit="images"))
        show(Progress(task=work.task, done=total, total=total, unit="images", ended=True))
        # Ray reports on the terminal each question that a killed actor leaves open, so those are waited for that are
        # being answered; those of workers that never found a place are not.
        if asked_of := [call for call, actor in questions.items() if actor in images]:
            ray.wait(asked_of, num_returns=len(asked_of), timeout=_POLL_S)
    finally:
        for actor in actors:
            ray.kill(actor)
