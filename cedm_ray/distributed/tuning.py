"""The driver as Ray Tune sees it: a Searcher that proposes its tasks, a scheduler that passes on its decisions, and a
callback that brings it news. Each only translates. Tune pickles them into its own files, which nobody reads back, so
nothing of ours goes in there.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cedm_ray.distributed.nested import reap
from cedm_ray.distributed.tasks import is_nested, task_config
from cedm_ray.errors import CedmError, StorageError
from cedm_ray.search.agenda import TrainTask
from cedm_ray.search.driver import Driver
from cedm_ray.search.results import Notice, Progress, TrialReport

HEAD_SHARE = {"node:__internal_head__": 0.001}
_REPORT_FIELDS = tuple(TrialReport.__dataclass_fields__)


@contextlib.contextmanager
def _errors_end(driver: Driver) -> Iterator[None]:
    """An error of ours in one of Tune's hooks ends the search as itself; Tune would make a traceback's text of it."""
    try:
        yield
    except CedmError as error:
        driver.fatal = error


class _Unpickled:
    """Leaves itself out of Tune's pickles."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class DriverSearcher(_Unpickled, Searcher):
    """Proposes what the driver would do next; ends the experiment when nothing is left."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric="distance", mode="min")
        self.driver = driver
        self.names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        found = None
        with _errors_end(self.driver):
            found = self.driver.next_task()
        if found is None:
            return Searcher.FINISHED if self.driver.finished else None
        task, held = found
        self.names[trial_id] = task.name
        nested = isinstance(task, TrainTask) and is_nested(self.driver.space)
        config = task_config(self.driver.study, self.driver.space, task, held.gpus)
        return config | {"cpus": held.cpus, "memory_bytes": held.memory_bytes, "nested": nested}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The callback has told the driver already: it knows the error's text, which does not come here."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a study is resumed from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


class DriverScheduler(_Unpickled, FIFOScheduler):
    """Stops a trial whose report the driver answers with its end, and whatever runs that nothing waits for any more.

    names: of the tasks, by the trials' ids.
    """

    def __init__(self, driver: Driver, names: dict[str, str]) -> None:
        super().__init__()
        self.driver, self.names = driver, names

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        with _errors_end(self.driver):
            if "rung" not in result:
                needless = self.driver.needless(self.names[trial.trial_id])
                return TrialScheduler.STOP if needless else TrialScheduler.CONTINUE
            decision = self.driver.judge(TrialReport(**{name: result[name] for name in _REPORT_FIELDS}))
            return TrialScheduler.CONTINUE if decision.status == "running" else TrialScheduler.STOP
        return TrialScheduler.STOP


class DriverNews(_Unpickled, tune.Callback):
    """Brings the driver progress, ends and failures, and reaps what a trial's workers left behind."""

    def __init__(self, driver: Driver, searcher: DriverSearcher, registry: Any, show: Any) -> None:
        self.driver, self.searcher, self.registry, self.show = driver, searcher, registry, show

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        name = self.searcher.names[trial.trial_id]
        if "notice" in result:
            self.show(Notice(text=result["notice"]))
        elif "epoch" in result:
            self.show(Progress(task=name, done=result["epoch"], total=result["epochs"], unit="epochs"))
        elif "images_seen" in result:
            total = self.driver.space.rungs.rungs_kimg[-1] * 1000
            loss = f"loss {result['loss']:.4g}" if result.get("loss") is not None else ""
            self.show(Progress(task=name, done=result["images_seen"], total=total, unit="images", detail=loss))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._reap(trial)
        name = self.searcher.names[trial.trial_id]
        result = trial.last_result or {}
        full = result.get("failure_code") == StorageError.exit_code
        with _errors_end(self.driver):
            if "failure" in result:
                self.driver.fail(name, result["failure"], fatal=StorageError(result["failure"]) if full else None)
            else:
                self.driver.end(name)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._reap(trial)
        lines = str(trial.get_error() or "").strip().splitlines() or ["its process died"]
        with _errors_end(self.driver):
            self.driver.fail(self.searcher.names[trial.trial_id], lines[-1])

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._reap(trial)
        self.show(
            Notice(text=f"{self.searcher.names[trial.trial_id]} lost its process and goes on from its checkpoint")
        )

    def _reap(self, trial: Any) -> None:
        if self.registry is not None:
            reap(self.registry, trial.trial_id)


def task_resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Tune sets aside for a task. The workers of a nested trial reserve their own; its trial sits on the head."""
    if config["nested"]:
        return tune.PlacementGroupFactory([HEAD_SHARE])
    held = {"CPU": config["cpus"], "GPU": config["gpus"], "memory": int(config["memory_bytes"])}
    return tune.PlacementGroupFactory([{name: amount for name, amount in held.items() if amount}])
