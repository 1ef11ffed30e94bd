"""A C-EDM trial of several workers: a Ray Train run inside a Tune trial, as a generator of what its first worker says.

Stock nesting has three faults in Ray 2.60, each with its answer here. A report can hang the trial for ever, so the
first worker speaks through a queue of our own. A stopped trial leaves its run alive, so closing this generator aborts
the run's controller. A run whose backend fails to start, or whose trial process dies, leaks its placement group, so
every group is registered before the backend starts, and the driver reaps it when the trial is over. Two private hooks
are used, `ControllerCallback` and `_create_default_callbacks`: Ray's minor version is pinned, and tests guard them.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray import train
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import placement_group_table, remove_placement_group
from ray.util.queue import Empty, Queue

from cedm_ray.distributed.tasks import NODE_LABEL, choose_device, read_held, read_task, task_config
from cedm_ray.errors import CedmError
from cedm_ray.search.goals import TrainTask
from cedm_ray.search.packing import Resources
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.search.trial import run_trial

REGISTRY, NAMESPACE = "cedm-ray-placement-groups", "cedm-ray"
_registries: dict[tuple[str, str], Any] = {}
_POLL_S = 1.0
_ABORT_S = 20.0


@ray.remote(num_cpus=0)
class PlacementGroups:
    """Which placement groups the Ray Train run of each trial made."""

    def __init__(self) -> None:
        self._groups: dict[str, list] = {}

    def add(self, trial: str, group: Any) -> None:
        self._groups.setdefault(trial, []).append(group)

    def take(self, trial: str) -> list:
        return self._groups.pop(trial, [])


def start_registry() -> Any:
    """The registry actor of this process and cluster.

    It dies with the handle that it was made by, whoever else has one, so that handle is kept.
    """
    context = ray.get_runtime_context()
    key = (context.gcs_address, context.get_job_id())
    if key not in _registries:
        _registries[key] = PlacementGroups.options(name=REGISTRY, namespace=NAMESPACE, get_if_exists=True).remote()
    return _registries[key]


def reap(registry: Any, trial: str) -> None:
    """Remove whatever placement groups the run of a trial has left, so that its GPUs are free."""
    for group in ray.get(registry.take.remote(trial)):
        if placement_group_table(group).get("state") != "REMOVED":
            remove_placement_group(group)


class _Register(WorkerGroupCallback):
    """Registers the run's placement group before the backend is set up, which is where a run can fail and leak it."""

    def __init__(self, trial: str) -> None:
        self._trial = trial

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get(ray.get_actor(REGISTRY, namespace=NAMESPACE).add.remote(self._trial, group))


class _HandOver(ControllerCallback):
    """Gives the trial a handle on its run's controller, which is what can abort the run."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_controller_start(self, train_run_context: Any) -> None:
        self._queue.put(("controller", ray.get_runtime_context().current_actor))


class _Trainer(TorchTrainer):
    """TorchTrainer with callbacks of ours first, and without Ray's cleaner, which needs a dashboard to work."""

    def __init__(self, *args: Any, first: list, **kwargs: Any) -> None:
        self._first = first
        super().__init__(*args, **kwargs)

    def _create_default_callbacks(self) -> list:
        defaults = super()._create_default_callbacks()
        return [*self._first, *(c for c in defaults if not isinstance(c, PlacementGroupCleanerCallback))]


def _work(config: dict[str, Any]) -> None:
    """What every worker runs: the same trial; the first worker says what it yields."""
    study, space, task = read_task(config)
    first = train.get_context().get_world_rank() == 0
    device = choose_device(read_held(config).each.gpus, space.resources.trial.cpus)
    if device == "cuda":
        # A worker sees the GPUs of all workers on its machine, and this one is its own.
        device = str(get_device())
        torch.cuda.set_device(device)
    try:
        for event in run_trial(study, space, device=device, **dataclasses.asdict(task)):
            if first:
                config["queue"].put(("said", event))
    except (CedmError, ValueError, ArithmeticError) as error:
        if not first:
            raise
        # Told as it is: as an error of the run it would arrive as the text of a traceback.
        config["queue"].put(("refused", error))


def nested_trial(study: Study, space: SearchSpace, task: TrainTask, held: Resources, *, key: str) -> Iterator[Any]:
    """Run the trial on `held.workers` workers; yields what `run_trial` yields, and None while they say nothing.

    held: what the workers hold together, and the machine of each; where none is named, Ray chooses. key: name of the
    Tune trial, under which its placement groups are registered. Closing the generator aborts the run. Raises what a
    worker raised.
    """
    queue = Queue(actor_options={"num_cpus": 0})
    gpus, whole = held.each.gpus, len(set(held.nodes)) == 1
    # Ray can be told of GPUs that are not there, and then the workers meet over gloo.
    on_gpu = gpus > 0 and torch.cuda.is_available()
    trainer = _Trainer(
        _work,
        first=[_Register(key), _HandOver(queue)],
        train_loop_config={**task_config(study, space, task, held), "queue": queue},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=held.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": held.each.cpus} | ({"GPU": gpus} if gpus else {}),
            placement_strategy="STRICT_PACK" if whole else "PACK",
            label_selector=[{NODE_LABEL: node} for node in held.nodes] or None,
        ),
        run_config=train.RunConfig(
            name=f"{task.name}-{key}",
            storage_path=str(study.ray.absolute() / "train"),
            failure_config=train.FailureConfig(max_failures=0),
        ),
    )

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            queue.put(("failed", str(error)))
        else:
            queue.put(("ended", None))

    thread = threading.Thread(target=fit, name=f"ray-train-{task.name}", daemon=True)
    thread.start()
    controller = None
    try:
        while True:
            try:
                kind, value = queue.get(timeout=_POLL_S)
            except Empty:
                yield None
                continue
            if kind == "controller":
                controller = value
            elif kind == "said":
                yield value
            elif kind == "refused":
                raise value
            elif kind == "failed":
                raise RuntimeError(value)
            else:
                return
    finally:
        if controller is not None and thread.is_alive():
            _abort(controller)
        thread.join(_ABORT_S)
        queue.shutdown(force=True)


def _abort(controller: Any) -> None:
    """End the run. The controller leaves by ending its own actor, so the call that asks for it never answers."""
    with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        ray.get(controller.abort.remote(), timeout=_ABORT_S)
