"""The driver as Ray Tune sees it: a Searcher that proposes its tasks, a scheduler that passes on its decisions, and a
callback that brings it news. Each only translates. Tune pickles them into its own files, which nobody reads back, so
nothing of ours goes in there.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cedm_ray.distributed import ENVIRONMENT
from cedm_ray.distributed.spares import Spares
from cedm_ray.distributed.tasks import NODE_LABEL, is_nested, process_title, task_config
from cedm_ray.errors import CedmError, StorageError
from cedm_ray.search.driver import Driver
from cedm_ray.search.goals import TrainTask
from cedm_ray.search.results import Notice, Progress, TrialReport

HEAD_SHARE = {"node:__internal_head__": 0.001}
IDLE_S = 5.0
"""How long the process of an ended task waits for another."""
_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "out of memory", "can't allocate memory", "due to memory pressure")
# Of a process that died its machine tells at once; where the machine is lost nobody does. Tune keeps of an error its
# text alone, so these are Ray's words for ActorUnavailableError: a test guards them.
_UNREACHABLE = re.compile(r"^The actor [0-9a-f]+ is unavailable: ", re.MULTILINE)
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
        return task_config(self.driver.study, self.driver.space_for(task), task, held) | {"nested": nested}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The callback has told the driver already: it knows the error's text, which does not come here."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a study is resumed from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


class DriverScheduler(_Unpickled, FIFOScheduler):
    """Stops a trial whose report the driver answers with its end, and whatever runs that nothing waits for any more.

    names: of the tasks, by the trials' ids. spares: told how many processes are wanted for what comes next.
    """

    def __init__(self, driver: Driver, names: dict[str, str], spares: Spares) -> None:
        super().__init__()
        self.driver, self.names, self.spares = driver, names, spares
        self._idle_since: float | None = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Have the task begin in the driver's own environment, as spare processes are in no other. Tune would give it
        one with what it passes on, which is empty but for what importing our package sets anyway. A private hook: a
        test guards it."""
        kind, known = trial.get_trainable_cls(), tune_controller._class_cache._cache
        passed_on = {name for name in ENV_VARS_TO_PROPAGATE if os.environ.get(name) != ENVIRONMENT.get(name)}
        if kind not in known and not passed_on:
            known[kind] = ray.remote(kind)
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        with _errors_end(self.driver):
            if "rung" not in result:
                return TrialScheduler.STOP if self._is_to_end(trial) else TrialScheduler.CONTINUE
            decision = self.driver.judge(TrialReport(**{name: result[name] for name in _REPORT_FIELDS}))
            return TrialScheduler.CONTINUE if decision.status == "running" else TrialScheduler.STOP
        return TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """As Tune would, after what waits for a place in vain is given up: nothing else ends a trial that never ran."""
        pending = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING]
        for trial in pending:
            if self._is_to_end(trial):
                tune_controller.stop_trial(trial)
        self._let_idle_processes_go(tune_controller)
        # While tasks wait for their own processes, none is started for later ones.
        self.spares.wanted = {} if pending else self.driver.followed
        return super().choose_trial_to_run(tune_controller)

    def _let_idle_processes_go(self, tune_controller: Any) -> None:
        """Tune keeps one process of an ended task for the next one, with all that it holds, as long as none comes. Of
        the GPUs of a stopped trial that is too long. A private hook: a test guards it."""
        if not tune_controller._actor_cache.num_cached_objects:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > IDLE_S:
            tune_controller._cleanup_cached_actors(force_all=True)

    def _is_to_end(self, trial: Any) -> bool:
        name = self.names[trial.trial_id]
        return self.driver.needless(name) or self.driver.misplaced(name)


class DriverNews(_Unpickled, tune.Callback):
    """Brings the driver progress, ends and failures, and reaps what a trial's workers left behind.

    died: called before the driver hears of a death, which may be that of a machine.
    """

    def __init__(
        self, driver: Driver, searcher: DriverSearcher, registry: Any, show: Any, died: Callable[[], None]
    ) -> None:
        self.driver, self.searcher, self.registry, self.show, self.died = driver, searcher, registry, show, died

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        name = self.searcher.names[trial.trial_id]
        if "notice" in result:
            self.show(Notice(text=result["notice"]))
        elif "epoch" in result:
            detail, unit = f"loss {result['loss']:.4g}" if "loss" in result else "", result.get("unit", "epochs")
            self.show(Progress(task=name, done=result["epoch"], total=result["epochs"], unit=unit, detail=detail))
        elif "images_seen" in result and not result.get("done"):
            # How it ended is said by its decision, and no time is left.
            if "rung" in result and self.driver.study.images_saved(name) > result["images_seen"]:
                # Said again by a process that took over beyond it.
                return
            space, final = self.driver.space, name.endswith("-final")
            total = 1000 * (space.finals.budget_kimg if final else space.rungs.rungs_kimg[-1])
            # A report's loss is the mean since the rung before: among those of the moment it would look like a jump.
            of_now = "rung" not in result and result.get("loss") is not None
            told = [f"loss {result['loss']:.4g}"] if of_now else []
            told += [f"{result['images_per_s']:,.0f} images/s"] if result.get("images_per_s") is not None else []
            self.show(
                Progress(
                    task=name,
                    done=result["images_seen"],
                    total=total,
                    unit="images",
                    detail=", ".join(told),
                    milestone="rung" in result,
                )
            )

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
        text = _error_text(trial)
        lines = text.strip().splitlines() or ["its process died"]
        self.died()
        with _errors_end(self.driver):
            self.driver.die(
                self.searcher.names[trial.trial_id],
                lines[-1],
                out_of_memory=is_out_of_memory(text),
                unreachable=_UNREACHABLE.search(text) is not None,
            )

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Only where Ray itself knows that the machine was taken back: then Tune begins again without asking."""
        self._reap(trial)

    def _reap(self, trial: Any) -> None:
        if self.registry is not None:
            from cedm_ray.distributed.nested import reap

            reap(self.registry, trial.trial_id)


def _error_text(trial: Any) -> str:
    """What Tune wrote of a trial's error. It is read where this process wrote it: `Trial.get_error` looks in the
    experiment's storage, where it comes later, if at all."""
    place = trial.error_file
    return Path(place).read_text() if place is not None and Path(place).exists() else ""


def is_out_of_memory(text: str) -> bool:
    """Whether an error's text is that of torch, of Python or of Ray's memory monitor when memory runs out."""
    return any(words in text for words in _OUT_OF_MEMORY)


class OwnResources(tune.PlacementGroupFactory):
    """Resources for the tasks of one process. Tune passes a process on to whichever task asks for equal resources, and
    Ray asks it for its name only once: so that every name is true, resources are equal for equal names alone."""

    def __init__(self, bundles: list[dict[str, float]], process_title: str, **placement: Any) -> None:
        super().__init__(bundles, **placement)
        self.process_title = process_title

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnResources) and self.process_title == other.process_title and super().__eq__(other)

    def __hash__(self) -> int:
        return hash((super().__hash__(), self.process_title))


def task_resources(config: dict[str, Any]) -> OwnResources:
    """What Tune sets aside for a task, on the machine that the driver chose. The workers of a nested trial reserve
    their own; its trial sits on the head."""
    if config["nested"]:
        return OwnResources([HEAD_SHARE], process_title(config))
    held = {"CPU": config["cpus"], "GPU": config["gpus"], "memory": int(config["memory_bytes"])}
    return OwnResources(
        [{name: amount for name, amount in held.items() if amount}],
        process_title(config),
        bundle_label_selector=[{NODE_LABEL: node} for node in config["nodes"]],
    )


def tune_name(trial: Any) -> str:
    """What Tune calls a trial in its own tables and logs."""
    return trial.config["title"]


def tune_folder(trial: Any) -> str:
    """The folder of Tune's own files on a trial."""
    return f"{tune_name(trial).replace(' ', '-')}-{trial.trial_id}"
