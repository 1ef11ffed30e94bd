"""StudyTask: the Tune trainable that steps one task of a study, a TEMI fit or a C-EDM trial, in its own process.

It only translates: the generators of `search/` do the work and write the records, and each `step` hands the next thing
that they say to Tune. Closing the generator ends the task.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune
from ray._raylet import setproctitle

from cedm_ray.clustering.kmeans import KMeansProgress
from cedm_ray.distributed.tasks import choose_device, is_nested, process_title, read_held, read_task
from cedm_ray.distributed.tuning import OwnResources, task_resources
from cedm_ray.errors import CedmError
from cedm_ray.search.fit import run_fit
from cedm_ray.search.goals import FitTask
from cedm_ray.search.packing import Resources
from cedm_ray.search.results import Notice, TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.search.trial import run_trial
from cedm_ray.watching.curves import watched

_STEP_S = 2.0


class StudyTask(tune.Trainable):
    """One task. A result carries `done` when the task's generator has ended, `rung` when it is a trial's report, and
    `failure` with the error's text where trying again would not help."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> OwnResources:
        """What Tune sets aside for a task. `tune.with_resources` would say the same and put a class of another name in
        this one's place, which is the name that Ray shows."""
        return task_resources(config)

    def setup(self, config: dict[str, Any]) -> None:
        self._name = process_title(config)
        self._begin(config)

    def __repr__(self) -> str:
        """What Ray's dashboard and `ray list actors --detail` call this actor. Asked once, when it begins."""
        return self._name

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another task in the same process, which saves importing torch once more."""
        self._events.close()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._in_actor:
            # Ray gives the process a title for every call, which says nothing of the task.
            setproctitle(f"ray::StudyTask {self._title}")
        until = time.monotonic() + _STEP_S
        said: dict[str, Any] = {}
        try:
            for event in self._events:
                if event is None:
                    # The workers have nothing to say; the driver has a look at what it wants of them all the same.
                    if time.monotonic() > until:
                        return said
                    continue
                if isinstance(event, TrialReport):
                    return dataclasses.asdict(event) | {"timesteps_total": event.images_seen} | self._pace
                if isinstance(event, Notice):
                    return {"notice": event.text}
                said = self._progress(event)
                if time.monotonic() > until:
                    return said
        except (CedmError, ValueError, ArithmeticError) as error:
            # The same input gives the same error: a second attempt would only cost time.
            return {
                "failure": str(error) or type(error).__name__,
                "failure_code": getattr(error, "exit_code", 1),
                "done": True,
            }
        return said | {"done": True}

    def cleanup(self) -> None:
        self._events.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the task's own records and checkpoints lie in the study."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a task that is begun again finds its records in the study."""

    def _begin(self, config: dict[str, Any]) -> None:
        study, space, self._task = read_task(config)
        self._title = config["title"]
        self._in_actor = ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE
        self._pace: dict[str, float] = {}
        self._events = watched(study, space, self._task, self._open(study, space, read_held(config)))

    def _open(self, study: Study, space: SearchSpace, held: Resources) -> Iterator[Any]:
        if isinstance(self._task, FitTask):
            return run_fit(study, space, self._task, device=choose_device(held.gpus, held.cpus))
        if is_nested(space):
            from cedm_ray.distributed.nested import nested_trial  # Ray Train takes a while to import.

            return nested_trial(study, space, self._task, held, key=self.trial_id)
        return run_trial(study, space, device=choose_device(held.gpus, held.cpus), **dataclasses.asdict(self._task))

    def _progress(self, event: Any) -> dict[str, Any]:
        if isinstance(event, KMeansProgress):
            said = {"epoch": event.run, "epochs": event.of, "unit": "runs"}
        elif isinstance(self._task, FitTask):
            said = {"epoch": event.epoch, "epochs": event.epochs, "loss": event.loss, "num_used": event.num_used}
        else:
            said = {"images_seen": event.images_seen, "timesteps_total": event.images_seen, "loss": event.loss}
            self._pace = {"images_per_s": event.images_per_s} if event.images_per_s else {}
            said |= self._pace
        # Tune takes None for a measurement.
        return {name: value for name, value in said.items() if value is not None} | {"process": os.getpid()}
