"""What a running search tells Prometheus, through the metrics that every Ray cluster exports.

The driver's process holds all of it: Tune brings it what the tasks say. Ray puts `ray_` before every name and `_total`
behind a counter's. `docs/grafana.json` draws these and no others; a test holds the two to each other.

Ray 2.60 forgets a gauge that was not set within its last two reports, which is some 20 seconds: what is true for longer
than that must be told again and again (seen on its endpoint; `telemetry/open_telemetry_metric_recorder.py` of Ray).
"""

import re
import threading
import time
from collections import Counter as Tally
from dataclasses import dataclass
from typing import Any, Literal, get_args

import ray
from ray import tune
from ray.util import metrics as ray_metrics

from cedm_ray.search.driver import Driver
from cedm_ray.search.goals import TrainTask
from cedm_ray.search.results import TrialStatus
from cedm_ray.search.status import WASTED
from cedm_ray.search.study import FitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """One metric. tags: by which it is told apart, besides those of Ray."""

    name: str
    kind: Literal["gauge", "counter"]
    tags: tuple[str, ...]
    text: str

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


_OF_STUDY, _OF_TASK = ("study",), ("study", "trial")
STATUSES: tuple[TrialStatus, ...] = get_args(TrialStatus)
_RETELL_S = 5.0
_OF_FIT = re.compile(r"-r\d+$")
PHASES = ("images", "features", "neighbors", "reference", "bound", "fits", "trials", "samples", "over")

INSTRUMENTS = {
    instrument.name: instrument
    for instrument in (
        Instrument(name="cedm_images_seen", kind="gauge", tags=_OF_TASK, text="Training images that a trial has seen."),
        Instrument(
            name="cedm_images_per_second",
            kind="gauge",
            tags=_OF_TASK,
            text="Training images per second of a trial, all its workers together; 0 when it does not run.",
        ),
        Instrument(name="cedm_loss", kind="gauge", tags=_OF_TASK, text="The last loss of a trial or a fit."),
        Instrument(name="cedm_rung", kind="gauge", tags=_OF_TASK, text="The last rung of a trial, from 0."),
        Instrument(
            name="cedm_distance", kind="gauge", tags=_OF_TASK, text="Frechet distance of a trial at its last rung."
        ),
        Instrument(
            name="cedm_num_clusters", kind="gauge", tags=_OF_TASK, text="C of a trial or a fit; 0 of the baseline."
        ),
        Instrument(
            name="cedm_gpus", kind="gauge", tags=_OF_TASK, text="GPUs, or the share of one, that a task holds now."
        ),
        Instrument(
            name="cedm_utilization",
            kind="gauge",
            tags=(*_OF_TASK, "num_clusters"),
            text="r_C of a fit: the share of its clusters that are used, if it ended now.",
        ),
        Instrument(name="cedm_alpha", kind="gauge", tags=_OF_STUDY, text="What r_C is to exceed within the bound."),
        Instrument(name="cedm_c_max", kind="gauge", tags=_OF_STUDY, text="C_max, as soon as it is known."),
        Instrument(name="cedm_trials", kind="gauge", tags=(*_OF_STUDY, "status"), text="C-EDM trials that are where."),
        Instrument(name="cedm_fits_running", kind="gauge", tags=_OF_STUDY, text="TEMI fits that run now."),
        Instrument(
            name="cedm_phase", kind="gauge", tags=(*_OF_STUDY, "phase"), text="1 of what the search is at, else 0."
        ),
        Instrument(
            name="cedm_gpu_seconds", kind="counter", tags=_OF_STUDY, text="GPU-seconds that tasks held since the start."
        ),
        Instrument(
            name="cedm_wasted_gpu_seconds",
            kind="counter",
            tags=_OF_STUDY,
            text="Those of trials that were stopped or failed, and of fits that were given up, counted at their end.",
        ),
    )
}


class StudyMetrics:
    """The metrics of one study in this process, which must be connected to Ray. study: its name in the tags."""

    def __init__(self, study: str) -> None:
        kinds = {"gauge": ray_metrics.Gauge, "counter": ray_metrics.Counter}
        self._study = study
        self._gauges: dict[tuple, tuple[float, dict[str, str]]] = {}
        self._metrics = {
            name: kinds[instrument.kind](name, instrument.text, instrument.tags)
            for name, instrument in INSTRUMENTS.items()
        }

    def set(self, name: str, value: float | None, **tags: str) -> None:
        """A gauge's value; None leaves it as it was."""
        if value is not None:
            self._gauges[name, *sorted(tags.items())] = value, {"study": self._study, **tags}
            self._metrics[name].set(*self._gauges[name, *sorted(tags.items())])

    def tell_again(self) -> None:
        """Set every gauge once more to what it is."""
        for (name, *_), (value, tags) in list(self._gauges.items()):
            self._metrics[name].set(value, tags)

    def keep_telling(self) -> None:
        """Tell all gauges again every few seconds for as long as this process is connected to Ray."""
        while ray.is_initialized():
            self.tell_again()
            time.sleep(_RETELL_S)

    def add(self, name: str, value: float) -> None:
        """Add to a counter."""
        if value > 0:
            self._metrics[name].inc(value, {"study": self._study})

    def phase(self, phase: str) -> None:
        """Say what the search is at: one of PHASES."""
        for other in PHASES:
            self.set("cedm_phase", float(other == phase), phase=other)


_known: dict[str, tuple[StudyMetrics, threading.Thread]] = {}


def study_metrics(study: str) -> StudyMetrics:
    """The metrics of a study in this process, which must be connected to Ray, and which keeps telling them from now on
    until it is not."""
    known = _known.get(study)
    if known is None or not known[1].is_alive():
        metrics = StudyMetrics(study)
        thread = threading.Thread(target=metrics.keep_telling, name=f"metrics of {study}", daemon=True)
        thread.start()
        _known[study] = metrics, thread
    return _known[study][0]


def tell_phase(study: str, phase: str) -> None:
    """Say what a study is at while no driver works on it; nothing where there is no Ray to say it through."""
    if ray.is_initialized():
        study_metrics(study).phase(phase)


@dataclass(slots=True)
class _Running:
    """A task that runs. since: monotonic seconds, up to when its GPU time is counted."""

    gpus: float
    since: float


class DriverMetrics(tune.Callback):
    """Keeps the metrics of a driver's study true while Tune runs its tasks. Comes after whatever tells the driver.

    names: of the tasks, by the trials' ids. Tune pickles its callbacks, and nothing of this goes in there.
    """

    def __init__(self, driver: Driver, names: dict[str, str], metrics: StudyMetrics) -> None:
        self.driver, self.names, self.metrics = driver, names, metrics
        self._running: dict[str, _Running] = {}
        self._spent: Tally[str] = Tally()
        self._phase: str | None = None
        metrics.set("cedm_alpha", driver.space.bound.alpha)
        for name, fit in driver.study.fits().items():
            self._tell_fit(name, fit)
        for trial in driver.study.trials():
            for report in driver.study.reports(trial):
                self._tell(trial, {"rung": report.rung, "images_seen": report.images_seen, "loss": report.loss})
                metrics.set("cedm_distance", report.distance, trial=trial)
        self._tell_whole()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        name, gpus = self.names[trial.trial_id], float(trial.config["gpus"])
        self._running[name] = _Running(gpus=gpus, since=time.monotonic())
        self.metrics.set("cedm_gpus", gpus, trial=name)
        self.metrics.set("cedm_num_clusters", float(trial.config["num_clusters"] or 0), trial=name)
        self._tell_whole()

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        name = self.names[trial.trial_id]
        self._tell(name, result)
        if "rung" in result:
            self.metrics.set("cedm_distance", result["distance"], trial=name)
            self._tell_whole()
        elif "num_used" in result:
            num_clusters = trial.config["num_clusters"]
            utilization = result["num_used"] / num_clusters
            self.metrics.set("cedm_utilization", utilization, trial=name, num_clusters=str(num_clusters))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._end(self.names[trial.trial_id])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._end(self.names[trial.trial_id])

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        for name in self._running:
            self._count(name)
        self._tell_phase()

    def _end(self, name: str) -> None:
        if name not in self._running:
            # Its process never began.
            return
        self._count(name)
        del self._running[name]
        fit = self.driver.study.fits().get(name)
        status = self._statuses().get(name)
        if fit is not None:
            self._tell_fit(name, fit)
        elif status is None or status in WASTED:
            self.metrics.add("cedm_wasted_gpu_seconds", self._spent[name])
        self.metrics.set("cedm_gpus", 0.0, trial=name)
        if not _OF_FIT.search(name):
            self.metrics.set("cedm_images_per_second", 0.0, trial=name)
        self._tell_whole()

    def _count(self, name: str) -> None:
        """Add the GPU time of a running task up to now."""
        task, now = self._running[name], time.monotonic()
        seconds = (now - task.since) * task.gpus
        task.since = now
        self._spent[name] += seconds
        self.metrics.add("cedm_gpu_seconds", seconds)

    def _tell(self, name: str, result: dict) -> None:
        for key, metric in (
            ("images_seen", "cedm_images_seen"),
            ("images_per_s", "cedm_images_per_second"),
            ("loss", "cedm_loss"),
            ("rung", "cedm_rung"),
        ):
            if result.get(key) is not None:
                self.metrics.set(metric, float(result[key]), trial=name)

    def _tell_fit(self, name: str, fit: FitRecord) -> None:
        utilization = fit.num_used / fit.num_clusters
        self.metrics.set("cedm_utilization", utilization, trial=name, num_clusters=str(fit.num_clusters))

    def _tell_whole(self) -> None:
        """What is said of the whole study."""
        tally = Tally(self._statuses().values())
        for status in STATUSES:
            self.metrics.set("cedm_trials", float(tally[status]), status=status)
        fits = sum(not isinstance(task, TrainTask) for task, _ in self.driver.live.values())
        self.metrics.set("cedm_fits_running", float(fits))
        bound = self.driver.agenda.bound
        if bound is not None and bound.c_max is not None:
            self.metrics.set("cedm_c_max", float(bound.c_max))
        self._tell_phase()

    def _tell_phase(self) -> None:
        kind = self.driver.goal.kind
        if self.driver.over:
            phase = "over"
        elif kind in ("bound", "search") and self.driver.agenda.bound is None:
            phase = "bound"
        else:
            phase = "fits" if kind in ("bound", "fits") else "trials"
        if phase != self._phase:
            self._phase = phase
            self.metrics.phase(phase)

    def _statuses(self) -> dict[str, TrialStatus]:
        """Of every trial that runs or ended, by its name."""
        found: dict[str, TrialStatus] = {
            name: "running" for name, (task, _) in self.driver.live.items() if isinstance(task, TrainTask)
        }
        found |= {trial: one.status for trial, one in self.driver.asha.newest.items() if one.status != "running"}
        return found | {name: "failed" for name in self.driver.study.failures() if not _OF_FIT.search(name)}
