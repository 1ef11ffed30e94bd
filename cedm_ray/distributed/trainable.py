"""StudyTask: the Tune trainable that steps one task of a study, a TEMI fit or a C-EDM trial, in its own process.

It only translates: the generators of `search/` do the work and write the records, and each `step` hands the next thing
that they say to Tune. Closing the generator ends the task.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

from ray import tune

from cedm_ray.distributed.nested import nested_trial
from cedm_ray.distributed.tasks import choose_device, is_nested, read_task
from cedm_ray.errors import CedmError
from cedm_ray.search.agenda import FitTask
from cedm_ray.search.fit import run_fit
from cedm_ray.search.results import Notice, TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.search.trial import run_trial

_STEP_S = 2.0


class StudyTask(tune.Trainable):
    """One task. A result carries `done` when the task's generator has ended, `rung` when it is a trial's report, and
    `failure` with the error's text where trying again would not help."""

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another task in the same process, which saves importing torch once more."""
        self._events.close()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        until = time.monotonic() + _STEP_S
        said: dict[str, Any] = {}
        try:
            for event in self._events:
                if isinstance(event, TrialReport):
                    return dataclasses.asdict(event) | {"timesteps_total": event.images_seen}
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
        self._rungs_kimg = space.rungs.rungs_kimg
        self._events = self._open(study, space, config["gpus"])

    def _open(self, study: Study, space: SearchSpace, gpus: float) -> Iterator[Any]:
        if isinstance(self._task, FitTask):
            return run_fit(study, space, self._task, device=choose_device(gpus))
        if is_nested(space):
            return nested_trial(study, space, self._task, key=self.trial_id)
        return run_trial(
            study, space, self._task.num_clusters, features=self._task.features, device=choose_device(gpus)
        )

    def _progress(self, event: Any) -> dict[str, Any]:
        if isinstance(self._task, FitTask):
            return {"epoch": event.epoch, "epochs": event.epochs, "loss": event.loss, "process": os.getpid()}
        said = {"images_seen": event.images_seen, "timesteps_total": event.images_seen, "process": os.getpid()}
        return said if event.loss is None else said | {"loss": event.loss}
