"""How a task of a study travels to the process that runs it: as plain values, which Tune shows and logs."""

from pathlib import Path
from typing import Any

import torch

from cedm_ray.features.extractors import absolute_spec
from cedm_ray.search.agenda import FitTask, Task, TrainTask
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study


def task_config(study: Study, space: SearchSpace, task: Task, gpus: float) -> dict[str, Any]:
    """A task in plain values. gpus: GPUs, or the share of one, that the process which runs it holds."""
    config = {
        "study": str(study.path.absolute()),
        "space": located(space).model_dump(mode="json"),
        "num_clusters": task.num_clusters,
        "gpus": gpus,
    }
    own = {"repeat": task.repeat, "lower": task.lower} if isinstance(task, FitTask) else {"features": task.features}
    return config | own


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
    if "repeat" in config:
        return (
            study,
            space,
            FitTask(num_clusters=config["num_clusters"], repeat=config["repeat"], lower=config["lower"]),
        )
    return study, space, TrainTask(num_clusters=config["num_clusters"], features=config["features"])


def choose_device(gpus: float) -> str:
    """`cuda` where this process holds a GPU or a share of one, else `cpu`.

    A share is also a limit of memory: Ray does not fence it, and a neighbor on the same GPU must not be starved.
    """
    if not gpus or not torch.cuda.is_available():
        return "cpu"
    if gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)
    return "cuda"


def is_nested(space: SearchSpace) -> bool:
    """Whether the space's trials are Ray Train runs of their own; else they train in the trial's process."""
    return space.resources.trial.workers > 1 or space.resources.trial.nested
