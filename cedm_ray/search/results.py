"""What a search finds out, as values: reports at rungs, decisions, ends, and the whole study's result.

Records of these are written once by the process that knows them (`study.py`) and never changed. Distances are Fréchet
distances in the detector's own units, lower is better; `images_seen` counts training images, repeats included.
"""

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from cedm_ray.clustering.bound import BoundResult
from cedm_ray.metrics.agreement import Agreement, ClusterSizes

UNCONDITIONAL = "unconditional"

FEATURES = "features"
"""The trial whose condition is an image's feature vector: the paper's oracle, for comparison and never a candidate."""

TrialStatus = Literal["running", "waiting", "completed", "stopped", "diverged", "collapsed", "failed"]
"""What a trial is. "waiting": at a rung, without a process, for what others will measure there."""

TRIAL_PATTERN = re.compile(
    rf"{UNCONDITIONAL}|{FEATURES}|c(?P<clusters>\d{{5,}})(?:-p(?P<proposal>[1-9]\d*))?(?:-s(?P<seed>[1-9]\d*))?"
)


class TrialName(NamedTuple):
    """What a trial's name says. num_clusters: C, None without clusters. seed: above 0 for a finalist that is trained
    again. proposal: number of the proposal that it tries, 0 for the space's own settings."""

    num_clusters: int | None
    seed: int = 0
    proposal: int = 0


@cache
def trial_name(num_clusters: int | None, seed: int = 0, proposal: int = 0) -> str:
    """The name of the trial conditioned on `num_clusters` clusters; None is the unconditional baseline.

    seed: 0 for the search's own trial; a finalist's further seeds are trials of their own. proposal: number of the
    proposal that it tries, from 1; 0 for none, which has the space's own settings.
    """
    if num_clusters is None:
        return UNCONDITIONAL
    return f"c{num_clusters:05d}" + (f"-p{proposal}" if proposal else "") + (f"-s{seed}" if seed else "")


@cache
def read_trial_name(name: str) -> TrialName:
    """What a trial's name says, undoing `trial_name`. Raises ValueError for a name of none."""
    found = TRIAL_PATTERN.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no name of a trial")
    clusters = found["clusters"]
    number = None if clusters is None else int(clusters)
    return TrialName(number, int(found["seed"] or 0), int(found["proposal"] or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that a user should know and that ended nothing, such as a damaged checkpoint that was passed over."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a piece of work is. total: None where it is not known yet. ended: nothing more will be heard of it.
    milestone: a point that is worth a line in a log whenever it comes, such as a rung."""

    task: str
    done: float
    total: float | None
    unit: str
    detail: str = ""
    ended: bool = False
    milestone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusteringSummary:
    """One line of a table of clusterings.

    name: of the clustering in its study. method: "temi", "kmeans", ... sizes: of the clusters in use. agreement: with
    the labels, None without any. seconds: that the clustering took, None where that is not known. passed: whether its
    utilization is above the bound's threshold, None where none was asked for.
    """

    name: str
    method: str
    num_clusters: int
    num_used: int
    sizes: ClusterSizes
    agreement: Agreement | None
    seconds: float | None
    passed: bool | None = None

    @property
    def utilization(self) -> float:
        """r_C = C^u / C, in (0, 1]."""
        return self.num_used / self.num_clusters


Show = Callable[[Progress | Notice | ClusteringSummary], None]
"""What a driver tells the user through."""

Taken, Found = TypeVar("Taken"), TypeVar("Found")


def shown(steps: Generator[Taken, None, Found], told: Callable[[Taken], Progress], show: Show) -> Found:
    """What a generator returns in the end; each of its steps is shown on the way, as `told` puts it."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        show(told(step))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """What one trial measured at one rung.

    distance: None where training diverged. loss: mean training loss since the previous rung, or since the process
    began where it took over in between; None where no step was finite. train_s and evaluate_s: seconds of this rung
    alone, those before a process took over left out. collapsed: the generated images are all alike. trained_images:
    those that train_s was spent on. gpus: that the trial held, all workers together, shares allowed; 0 on a CPU. Both
    are None in the records of version 0.1.
    """

    trial: str
    rung: int
    images_seen: int
    distance: float | None
    num_samples: int
    loss: float | None
    train_s: float
    evaluate_s: float
    skipped_steps: int
    collapsed: bool
    trained_images: int | None = None
    gpus: float | None = None

    @classmethod
    def played(
        cls,
        trial: str,
        rung: int,
        distance: float | None,
        *,
        images_seen: int,
        num_samples: int = 0,
        collapsed: bool = False,
    ) -> "TrialReport":
        """What a trial that nobody trains says, where a search is only played: it has a distance and took no time."""
        return cls(
            trial=trial,
            rung=rung,
            images_seen=images_seen,
            distance=distance,
            num_samples=num_samples,
            loss=None,
            train_s=0.0,
            evaluate_s=0.0,
            skipped_steps=0,
            collapsed=collapsed,
        )

    @property
    def images_per_s(self) -> float | None:
        """Of training alone, all workers together; None where it is not on record."""
        return self.trained_images / self.train_s if self.trained_images and self.train_s else None

    @property
    def gpu_h(self) -> float | None:
        """GPU-hours of this rung, its evaluation included; None where they are not on record."""
        return None if self.gpus is None else self.gpus * (self.train_s + self.evaluate_s) / 3600


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RungSamples:
    """The first images that a trial generated to be measured at a rung, for people to look at.

    seeds: of the images, int64 [n]; under data-parallel training those of the first worker, else the first of all, so
    that all trials of a study show the same ones as long as resources.trial.workers stays. images: uint8 [n, 3, S, S].
    """

    trial: str
    rung: int
    images_seen: int
    seeds: np.ndarray
    images: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided on a report. `sequence` orders all decisions of a study, from 1.

    status: what the trial is from here on; "running" lets it continue, and "waiting" is followed by a second decision
    on the same report. cutoff: the rung's cutoff distance that the report was held against, None where none applied.
    """

    sequence: int
    trial: str
    rung: int
    images_seen: int
    status: TrialStatus
    cutoff: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trial ended. status: completed, stopped, diverged, collapsed or failed. distances: (rung, distance) of
    every rung that it came to with a usable distance, rising."""

    status: TrialStatus
    distances: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """How a trial ended, in words where it did not complete. num_clusters None: the unconditional baseline, or the
    trial on features. seed: above 0 for a finalist that was trained again.

    num_used: C^u, the number of classes that the network was conditioned on; None without clusters, and where the
    trial ended before its clusters were known. utilization is num_used / num_clusters, r_C. settings: the value of
    every setting that is searched besides C, by its path; empty where none is.
    """

    trial: str
    num_clusters: int | None
    num_used: int | None
    status: TrialStatus
    reason: str
    reports: tuple[TrialReport, ...]
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def at(self, rung: int) -> TrialReport | None:
        """The report of a rung, from 0; None where there is none with a usable distance."""
        usable = (r for r in self.reports if r.rung == rung and r.distance is not None and not r.collapsed)
        return next(usable, None)

    @property
    def utilization(self) -> float | None:
        if self.num_clusters is None or self.num_used is None:
            return None
        return self.num_used / self.num_clusters

    @property
    def is_baseline(self) -> bool:
        """Whether this is the unconditional model, which gains are relative to."""
        return self.trial == UNCONDITIONAL

    @property
    def is_comparison(self) -> bool:
        """Whether this is the trial on features, which is shown beside the others and is never the best."""
        return self.trial == FEATURES

    @property
    def final(self) -> TrialReport | None:
        """The last report with a usable distance, None if there is none."""
        usable = [report for report in self.reports if report.distance is not None and not report.collapsed]
        return usable[-1] if usable else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """The answer of a study and everything that led to it.

    metric: the distance's name, which says the detector ("FID", "FDD", "FD[pixels]"). rungs_kimg: the rung levels in
    thousands of images, with the winner's last stretch once it has been measured there. full_rung: index of the full
    budget of the search, at which trials are compared; None = the last. best: name of the trial whose model was kept
    (the lowest distance at the full budget among the conditional trials, with several seeds that of the C with the
    lowest mean), None if none is usable. gain: 1 - best distance / the unconditional model's distance, both at the full
    budget, None where either is missing. stage_s: wall seconds by stage, summed over resumed runs.
    """

    name: str
    num_images: int
    image_size: int
    extractor: str
    metric: str
    num_samples: int
    rungs_kimg: tuple[float, ...]
    bound: BoundResult
    trials: tuple[TrialResult, ...]
    best: str | None
    gain: float | None
    stage_s: dict[str, float]
    full_rung: int | None = None

    def compared(self, trial: TrialResult) -> TrialReport | None:
        """The report by which a trial is compared with others: at the full budget, else its last usable one."""
        full = len(self.rungs_kimg) - 1 if self.full_rung is None else self.full_rung
        return trial.at(full) or trial.final

    def trial(self, name: str) -> TrialResult:
        """The trial of that name. Raises KeyError."""
        for trial in self.trials:
            if trial.trial == name:
                return trial
        raise KeyError(name)

    @property
    def best_num_clusters(self) -> int | None:
        """C_V, the C of the best trial; None if there is none."""
        return None if self.best is None else self.trial(self.best).num_clusters
