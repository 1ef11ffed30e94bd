"""Where a study stands, from its records alone: what `cedm-ray status` and `watch` show, from any machine that sees it.

Nothing is started, locked for longer than a look, or written. What a running trial has trained is known as of its
newest checkpoint; images per second and GPU time are those of its reports, so they leave out what was trained since the
last rung, and what was lost with a process that died. Studies of version 0.1 have no such figures, and then they are
None.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.features.extractors import distance_name
from cedm_ray.lock import Owner
from cedm_ray.search.goals import Goal, Proposal, task_of
from cedm_ray.search.outcome import restore, standing
from cedm_ray.search.results import (
    TRIAL_PATTERN,
    UNCONDITIONAL,
    Decision,
    TrialReport,
    TrialStatus,
    trial_name,
)
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.stop import driver_at_work
from cedm_ray.search.study import FitRecord, Study

Phase = Literal["images", "features", "bound", "trials", "over"]

WASTED: tuple[TrialStatus, ...] = ("stopped", "diverged", "collapsed", "failed")
"""Ends of trials whose models are of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStanding:
    """One trial. num_clusters None: the unconditional baseline. num_used: C^u, None while it is not known.

    state: waiting (nothing of it is on record), running, or how it ended; a trial that is under way in a study that
    nobody drives is "interrupted". rung: of its last report, from 0, None before the first. images_seen: by its newest
    report or checkpoint. distance: at its last rung. images_per_s: of training in its last interval. gpus: that it
    holds. gpu_h, trial_h: GPU-hours and hours of its reports. eta_s: seconds to the last rung at its last pace,
    evaluations included, as if nothing stopped it; None where that is not known or it does not run. reason: of the last
    decision on it, or the text of its failure. settings: those that are searched besides C, by path.
    """

    trial: str
    num_clusters: int | None
    num_used: int | None
    state: Literal["waiting", "interrupted"] | TrialStatus
    rung: int | None
    images_seen: int
    distance: float | None
    images_per_s: float | None
    gpus: float | None
    gpu_h: float | None
    trial_h: float
    eta_s: float | None
    reason: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def utilization(self) -> float | None:
        """r_C; None for the baseline and while it is not known."""
        known = self.num_clusters is not None and self.num_used is not None
        return self.num_used / self.num_clusters if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A study as it stands.

    metric: the distance's name. rungs_kimg: the rungs. driver: who is at work now, None where nobody is. last_exit: how
    the last command that drove it ended (`code`, `text`); None where none has yet. phase: what is worked on, or comes
    next. bound: the sentence on C_max, None while it is searched. c_max: None while it is searched or where no C
    passes. fits: how many are done. trials: the baseline, then those of the candidates ascending, then any others.
    images_per_s: of all running trials together. gpu_h, wasted_gpu_h: of all trials, and of those that were stopped or
    failed; None where a report does not say. wasted_h: hours of the latter, on whatever they ran. eta_s: seconds until
    all trials are at the last rung, at the pace of those that run now and as if none was stopped, so it is the most
    that it should take; None where that is not known or nobody drives. stage_s: wall seconds by stage, over all runs.
    """

    name: str
    metric: str
    rungs_kimg: tuple[float, ...]
    driver: Owner | None
    last_exit: dict[str, Any] | None
    phase: Phase
    bound: str | None
    c_max: int | None
    fits: int
    trials: tuple[TrialStanding, ...]
    images_per_s: float | None
    gpu_h: float | None
    wasted_gpu_h: float | None
    wasted_h: float
    eta_s: float | None
    stage_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As plain values, r_C included."""
        plain = dataclasses.asdict(self)
        for trial, line in zip(self.trials, plain["trials"], strict=True):
            line["utilization"] = trial.utilization
        return plain


def read_standing(study: Study) -> Standing:
    """Read where a study stands. Raises ConfigurationError where there is none, IntegrityError on damaged records."""
    space = SearchSpace.from_settled(study.settled())
    driver = driver_at_work(study)
    fits, bound = study.fits(), None
    judged: dict[str, Decision] = {}
    if (study.images / durable.MANIFEST).exists():
        num_images = len(open_image_set(study.images))
        # The decisions before the trials: what they were taken on was written before them.
        contest = restore(study, space, num_images, Goal(kind="search"))
        bound, judged = contest.agenda.bound, contest.asha.newest
    found, failures = study.trials(), study.failures()
    # After the trials, which are begun when their proposals are on record.
    proposals = study.proposals()
    trials = tuple(
        _trial(study, space, name, proposals, judged.get(name), fits, failures, driver is not None)
        for name in _names(study, found, failures, proposals)
    )
    running = [trial for trial in trials if trial.state == "running"]
    gpu_h, wasted = [trial.gpu_h for trial in trials], [trial for trial in trials if trial.state in WASTED]
    return Standing(
        name=space.name,
        metric=distance_name(space.evaluation.detector, space.evaluation.weights),
        rungs_kimg=space.rungs.rungs_kimg,
        driver=driver,
        last_exit=study.read_exit(),
        phase=_phase(study, bound, trials),
        bound=None if bound is None else bound.reason,
        c_max=None if bound is None else bound.c_max,
        fits=len(fits),
        trials=trials,
        images_per_s=_sum([trial.images_per_s for trial in running]) if running else None,
        gpu_h=_sum(gpu_h),
        wasted_gpu_h=_sum([trial.gpu_h for trial in wasted]),
        wasted_h=sum(trial.trial_h for trial in wasted),
        eta_s=_eta_s(space, trials) if driver is not None else None,
        stage_s=study.stage_s(),
    )


def _names(study: Study, found: Sequence[str], failures: dict[str, str], proposals: Sequence[Proposal]) -> list[str]:
    """The trials that are planned and those that left anything. found: those of the latter that began."""
    planned = [trial_name(c) for c in sorted(study.candidates())]
    if proposals:
        planned = [one.task.trial for one in sorted(proposals, key=lambda one: (one.num_clusters, one.number))]
    failed = {name for name in failures if TRIAL_PATTERN.fullmatch(name)}
    baseline = [UNCONDITIONAL] if planned or UNCONDITIONAL in found else []
    return [*baseline, *planned, *sorted({*found, *failed} - {UNCONDITIONAL, *planned})]


def _trial(
    study: Study,
    space: SearchSpace,
    name: str,
    proposals: Sequence[Proposal],
    judged: Decision | None,
    fits: dict[str, FitRecord],
    failures: dict[str, str],
    driven: bool,
) -> TrialStanding:
    task = task_of(name, proposals)
    num_clusters = task.num_clusters
    first_fit = None if task.fit is None else task.fit.name
    fit = fits.get(first_fit)
    reports = study.reports(name)
    saved = study.images_saved(name)
    last = reports[-1] if reports else None
    seen = max(saved, last.images_seen if last else 0)
    state, reason = standing(judged, failures.get(name, failures.get(first_fit)))
    if state == "running" and not study.has_begun(name):
        state, reason = "waiting", "not begun"
    elif state == "running" and not driven:
        state = "interrupted"
    return TrialStanding(
        trial=name,
        num_clusters=num_clusters,
        num_used=None if fit is None else fit.num_used,
        state=state,
        rung=None if last is None else last.rung,
        images_seen=seen,
        distance=None if last is None else last.distance,
        images_per_s=None if last is None else last.images_per_s,
        gpus=None if last is None else last.gpus,
        gpu_h=_sum([report.gpu_h for report in reports]),
        trial_h=sum(report.train_s + report.evaluate_s for report in reports) / 3600,
        eta_s=_left(space, seen) / pace if state == "running" and (pace := _pace(last)) else None,
        reason=reason,
        settings=dict(proposals[task.proposal - 1].settings) if task.proposal else {},
    )


def _phase(study: Study, bound, trials: Sequence[TrialStanding]) -> Phase:
    if not (study.images / durable.MANIFEST).exists():
        return "images"
    if not study.neighbors.exists():
        return "features"
    if bound is None:
        return "bound"
    open_ones = [trial for trial in trials if trial.state in ("waiting", "running", "interrupted")]
    return "trials" if open_ones else "over"


def _pace(report: TrialReport | None) -> float | None:
    """Training images a second with the evaluation's time in it; None where it is not on record."""
    if report is None or not report.trained_images:
        return None
    seconds = report.train_s + report.evaluate_s
    return report.trained_images / seconds if seconds > 0 else None


def _left(space: SearchSpace, images_seen: int) -> float:
    """Training images from there to the last rung."""
    return max(0.0, space.rungs.rungs_kimg[-1] * 1000 - images_seen)


def _eta_s(space: SearchSpace, trials: Sequence[TrialStanding]) -> float | None:
    """The longest of: the slowest running trial, and all that is left at the pace of all that run now."""
    running = [trial for trial in trials if trial.state == "running"]
    known = [trial.eta_s for trial in running if trial.eta_s is not None]
    waiting = [trial for trial in trials if trial.state in ("waiting", "interrupted")]
    if not known:
        return None
    # A running trial that has not reported yet is taken to be as fast as the others are on average.
    paces = [_left(space, trial.images_seen) / trial.eta_s for trial in running if trial.eta_s]
    pace = sum(paces) / len(paces) * len(running) if paces else 0.0
    left = sum(_left(space, trial.images_seen) for trial in (*running, *waiting))
    return max(*known, left / pace) if pace else max(known)


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum, None where one of them is not known."""
    return None if any(value is None for value in values) else float(sum(values))
