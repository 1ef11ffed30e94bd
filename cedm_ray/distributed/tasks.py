"""How a task of a study travels to the process that runs it: as plain values, which Tune shows and logs."""

from pathlib import Path
from typing import Any

import torch

from cedm_ray.allocator import keep_freed_memory
from cedm_ray.features.extractors import absolute_spec
from cedm_ray.search.goals import FitTask, Task, TrainTask
from cedm_ray.search.packing import Resources
from cedm_ray.search.results import trial_name
from cedm_ray.search.settings import frozen
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

NODE_LABEL = "ray.io/node-id"
"""Ray labels every machine with its id by itself, so that no custom resource is needed to place a task."""

_OF_TRIALS = ("features", "seed", "final", "proposal")


def task_config(study: Study, space: SearchSpace, task: Task, held: Resources) -> dict[str, Any]:
    """A task in plain values. held: what it holds, all workers together, and where."""
    config = {
        "study": str(study.path.absolute()),
        "space": located(space).model_dump(mode="json"),
        "num_clusters": task.num_clusters,
        "changes": dict(task.changes),
        "cpus": held.cpus,
        "gpus": held.gpus,
        "memory_bytes": held.memory_bytes,
        "workers": held.workers,
        "nodes": list(held.nodes),
        "title": title(task),
    }
    if isinstance(task, FitTask):
        return config | {"repeat": task.repeat, "lower": task.lower}
    return config | {name: getattr(task, name) for name in _OF_TRIALS}


def title(task: Task) -> str:
    """A task as Ray's dashboard and the lists of processes call it: `cedm C=100`, `temi C=50`, `temi C=50 lower r1`."""
    if isinstance(task, TrainTask) and task.num_clusters is None:
        return f"cedm {task.name}"
    rest = task.name.removeprefix(trial_name(task.num_clusters)).split("-")
    # Most fits are the first of their C.
    told = [part for part in rest if part not in ("", "r0")]
    return " ".join(["temi" if isinstance(task, FitTask) else "cedm", f"C={task.num_clusters}", *told])


def process_title(config: dict[str, Any]) -> str:
    """The title of all tasks that one process may do one after another: of a trial its own, of all fits `temi`."""
    return "temi" if "repeat" in config else config["title"]


def located(space: SearchSpace) -> SearchSpace:
    """The space with paths that can be opened from any folder: a task does not run where the command was given."""
    features, evaluation = space.features, space.evaluation
    features = features.model_copy(
        update={"extractor": absolute_spec(features.extractor), "weights": _absolute(features.weights)}
    )
    evaluation = evaluation.model_copy(
        update={"detector": absolute_spec(evaluation.detector), "weights": _absolute(evaluation.weights)}
    )
    return space.model_copy(update={"features": features, "evaluation": evaluation})


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def read_task(config: dict[str, Any]) -> tuple[Study, SearchSpace, Task]:
    """Undo `task_config`."""
    study, space = Study(Path(config["study"])), SearchSpace.model_validate(config["space"])
    both = {"num_clusters": config["num_clusters"], "changes": frozen(config["changes"])}
    if "repeat" in config:
        return study, space, FitTask(repeat=config["repeat"], lower=config["lower"], **both)
    return study, space, TrainTask(**both, **{name: config[name] for name in _OF_TRIALS})


def read_held(config: dict[str, Any]) -> Resources:
    """What `task_config` was told that the task holds."""
    held = {name: config[name] for name in ("cpus", "gpus", "memory_bytes", "workers")}
    return Resources(**held, nodes=tuple(config["nodes"]))


def choose_device(gpus: float, cpus: float = 1.0) -> str:
    """`cuda` where this process holds a GPU or a share of one, else `cpu`.

    From then on torch computes on `cpus` cores, at least one. Ray says so by OMP_NUM_THREADS, which a process that
    imported torch before it had a task has read too early; two fits that compute on all cores each take six times as
    long.

    A share is also a limit of memory: Ray does not fence it, and a neighbor on the same GPU must not be starved. On a
    CPU the process keeps what memory it frees, for its next step.
    """
    torch.set_num_threads(max(1, int(cpus)))
    keep_freed_memory()
    if not gpus or not torch.cuda.is_available():
        return "cpu"
    if gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)
    return "cuda"


def is_nested(space: SearchSpace) -> bool:
    """Whether the space's trials are Ray Train runs of their own; else they train in the trial's process."""
    return space.resources.trial.workers > 1 or space.resources.trial.nested
