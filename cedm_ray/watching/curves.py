"""The curves of a study's trials and fits for TensorBoard: from what a task says while it runs, or from the records.

A trial's x axis is the number of training images that it has seen (TensorBoard shows it as 15k or 40M), a fit's its
epochs. Both may be stopped, killed and resumed: their curves go on where they were, with no point twice, because what a
trial does is a function of the images that it has seen.
"""

import contextlib
import itertools
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from cedm_ray.clustering.temi import TemiProgress
from cedm_ray.diffusion.ema import ema_decay
from cedm_ray.diffusion.train import TrainProgress
from cedm_ray.errors import StorageError
from cedm_ray.search.goals import Task, TrainTask
from cedm_ray.search.results import Notice, RungSamples, TrialReport, TrialStatus
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.watching.event_files import EventFile
from cedm_ray.watching.hyperparameters import END_TAG, START_TAG, session_end, session_start

GRID_TAG, GRID_COLUMNS = "rung/samples", 8

_BEGINNING = object()
"""Stands for the event that a task begins."""

Points = dict[str, float | None]
"""The values of several curves at one step, by their tags; None is no point."""


def training_points(progress: TrainProgress, space: SearchSpace) -> Points:
    """What training says of itself at an image. EMA: the share of the average that a step keeps (beta)."""
    training = space.training
    decay = ema_decay(
        max(progress.images_seen - training.batch_size, 0),
        training.batch_size,
        halflife_kimg=training.ema_halflife_kimg,
        rampup_ratio=training.ema_rampup_ratio,
    )
    return {
        "train/loss": progress.loss,
        "train/learning_rate": progress.learning_rate,
        "train/gradient_norm": progress.gradient_norm,
        "train/images_per_s": progress.images_per_s,
        "train/skipped_steps": progress.skipped_steps,
        "train/ema_decay": decay,
    }


def report_points(report: TrialReport) -> Points:
    """What was measured at a rung."""
    return {
        "rung/distance": report.distance,
        "rung/loss": report.loss,
        "rung/kimg": report.images_seen / 1000,
        "rung/skipped_steps": report.skipped_steps,
        "rung/train_s": report.train_s,
        "rung/evaluate_s": report.evaluate_s,
    }


def fit_points(progress: TemiProgress, num_clusters: int) -> Points:
    """What a fit says of itself after an epoch; utilization: r_C if it ended there."""
    return {
        "temi/loss": progress.loss,
        "temi/learning_rate": progress.learning_rate,
        "temi/marginal_entropy": progress.marginal_entropy,
        "temi/utilization": progress.num_used / num_clusters,
    }


def watched(study: Study, space: SearchSpace, task: Task, events: Generator[Any]) -> Iterator[Any]:
    """What the generator of a task yields, its RungSamples excepted, and its curves on the way.

    A curve is no result: where the storage refuses it, a Notice says so once and the task goes on without. Closing this
    closes `events`.
    """
    refused: StorageError | None = None
    with contextlib.closing(events), EventFile(study.tensorboard(_folder(task))) as curves:
        for event in itertools.chain([_BEGINNING], events):
            if refused is None:
                try:
                    _write(curves, study, space, task, event)
                except StorageError as error:
                    refused = error
                    yield Notice(text=f"{task.name} goes on without curves for TensorBoard: {error}")
            if event is not _BEGINNING and not isinstance(event, RungSamples):
                yield event


def _folder(task: Task) -> str:
    """Of a trial its name: the last stretch of the winner goes on in the same curves."""
    return task.trial if isinstance(task, TrainTask) else task.name


def _write(curves: EventFile, study: Study, space: SearchSpace, task: Task, event: Any) -> None:
    """What an event adds to the curves."""
    if event is _BEGINNING:
        if isinstance(task, TrainTask) and not curves.has(START_TAG):
            curves.write(0, session_start(study, space, task.trial))
    elif isinstance(event, TrainProgress):
        curves.scalars(event.images_seen, training_points(event, space))
    elif isinstance(event, TrialReport):
        curves.scalars(event.images_seen, report_points(event))
    elif isinstance(event, RungSamples):
        if len(event.images):
            curves.grid(GRID_TAG, event.images_seen, event.images, columns=GRID_COLUMNS)
    elif isinstance(event, TemiProgress):
        curves.scalars(event.epoch, fit_points(event, task.num_clusters))


def complete_curves(study: Study, space: SearchSpace) -> None:
    """Write what the records know and the curves lack: of every trial that ended its rungs, its hyperparameters and how
    it ended, and of every fit its r_C.

    What a record does not hold (training between rungs, grids of samples, a fit's epochs) is not made up: of a folder
    that was removed, that is gone. A trial that runs is left to its own process. Raises StorageError.
    """
    for name, status in _ends(study).items():
        with EventFile(study.tensorboard(name)) as curves:
            if not curves.has(START_TAG):
                curves.write(0, session_start(study, space, name))
            for report in study.reports(name):
                curves.scalars(report.images_seen, report_points(report))
            if not curves.has(END_TAG):
                curves.write(0, session_end(status))
    for name, fit in study.fits().items():
        with EventFile(study.tensorboard(name)) as curves:
            changes = fit.task.changes
            epochs = (space.changed(changes) if changes else space).clustering.epochs
            curves.scalars(epochs, {"temi/utilization": fit.num_used / fit.num_clusters})


def _ends(study: Study) -> Mapping[str, TrialStatus]:
    """How every trial ended that did, by its name."""
    trials = set(study.trials())
    newest: dict[str, TrialStatus] = {decision.trial: decision.status for decision in study.decisions()}
    ends = {name: status for name, status in newest.items() if status not in ("running", "waiting")}
    return ends | {name: "failed" for name in study.failures() if name in trials}
