"""What training a trial will take, found out on this machine in a minute: the network's size, its memory, its speed.

Nothing of a study is written. The steps that are timed are those of `train.py`, on the study's images where they are
imported already and on random ones of the same size where they are not: speed does not depend on what they show.

C clusters, K = C^u classes of the network, S image side.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import NUM_LABELS
from cedm_ray.diffusion.memory import predict_memory
from cedm_ray.diffusion.state import TrainState, compute_dtype
from cedm_ray.diffusion.train import train
from cedm_ray.diffusion.unet import UNet
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.clusterings import features_shape
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.results import Notice, Progress
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

STEPS = 20
"""Steps that are timed, after one that is not."""

CPU_S = 30.0
"""Seconds that the timed steps may take on a CPU; they are given fewer images where a whole batch takes longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One way to condition the network. num_clusters: C, None = unconditional. num_classes: C^u, 0 = unconditional,
    None where the clustering was not fitted yet. feature_dim: D of the feature vectors that are the condition, 0 =
    none. parameters: of the network; with C classes where C^u is unknown."""

    trial: str
    num_clusters: int | None
    num_classes: int | None
    parameters: int
    feature_dim: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What was found out for the first of `conditions`.

    images: "study" or "random". device: cpu or cuda. precision: of the activations. batch_size: images of a step over
    all workers. measured_batch: images of each of the `STEPS` timed steps of one worker. images_per_s: measured, of
    one worker. memory_bytes: predicted peak of one worker at the whole batch. hours: to the budget, for all workers,
    as if they did not hold each other up.
    """

    conditions: tuple[Condition, ...]
    image_size: int
    images: str
    device: str
    precision: str
    workers: int
    batch_size: int
    measured_batch: int
    images_per_s: float
    memory_bytes: int
    budget_kimg: float
    hours: float


def rehearse(
    study: Study, space: SearchSpace, num_clusters: int | None, *, device: str, features: bool = False
) -> Iterator[Progress | Notice | Rehearsal]:
    """Of the trial that `run_trial` would train. Yields progress, and the Rehearsal last.

    Raises ConfigurationError where the image size is not known yet or does not fit the network, where a trial on
    features finds none, or where the workers do not divide the batch.
    """
    trial = TrainTask(num_clusters=num_clusters, features=features)
    pixels, size = _pixels(study, space)
    workers = space.resources.trial.workers
    if space.training.batch_size % workers:
        raise ConfigurationError(
            f"training.batch_size {space.training.batch_size} is not divisible by resources.trial.workers {workers}"
        )
    conditions = tuple(_conditions(study, space, trial, size))
    first = conditions[0]
    dtype = compute_dtype(space.training.precision, torch.device(device))
    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    memory = predict_memory(
        space.network,
        space.training,
        image_size=size,
        augment=space.augmentation,
        num_classes=_classes(first),
        feature_dim=first.feature_dim,
        precision=precision,
        workers=workers,
        device_type=device,
        resident_bytes=pixels.nbytes if device == "cuda" else 0,
    )
    speed = 0.0, 0
    with _cores_of_a_trial(space, device):
        for step in _measure(space, pixels, first, size, device):
            if isinstance(step, tuple):
                speed = step
            else:
                yield step
    budget = space.rungs.rungs_kimg[-1]
    yield Rehearsal(
        conditions=conditions,
        image_size=size,
        images="study" if _imported(study) else "random",
        device=device,
        precision=precision,
        workers=workers,
        batch_size=space.training.batch_size,
        measured_batch=speed[1],
        images_per_s=speed[0],
        memory_bytes=memory,
        budget_kimg=budget,
        hours=budget * 1000 / (speed[0] * workers) / 3600,
    )


def _imported(study: Study) -> bool:
    return (study.images / durable.MANIFEST).exists()


def _pixels(study: Study, space: SearchSpace) -> tuple[np.ndarray, int]:
    """uint8 [N, 3, S, S] and S."""
    if _imported(study):
        images = open_image_set(study.images)
        return images.pixels, images.size
    size = space.images.size
    if size is None:
        raise ConfigurationError(
            "the size of the images is not known before they are imported",
            mend="set images.size, or import them first: cedm-ray features SPACE --study STUDY --images PATH",
        )
    count = max(1024, space.training.batch_size)
    return np.random.default_rng(space.seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8), size


def _conditions(study: Study, space: SearchSpace, trial: TrainTask, size: int) -> Iterator[Condition]:
    """The one that was asked for, then those whose clusters the study has fitted."""
    used = {
        fit.num_clusters: fit.num_used
        for fit in study.fits().values()
        if fit.task == FitTask(num_clusters=fit.num_clusters, repeat=0)
    }
    augment_dim = NUM_LABELS if space.augmentation.probability else 0
    others = sorted(c for c in used if c != trial.num_clusters)
    for task in (trial, *(TrainTask(num_clusters=c) for c in others)):
        clusters, width = task.num_clusters, _feature_dim(study) if task.features else 0
        classes = 0 if clusters is None else used.get(clusters)
        try:
            with torch.device("meta"):
                known = clusters or 0 if classes is None else classes
                net = UNet(space.network, size, known, augment_dim, feature_dim=width)
        except ValueError as error:
            mend = "set images.size, or fewer levels in network.channel_mult"
            raise ConfigurationError(f"network: {error}", mend=mend) from None
        yield Condition(
            trial=task.name,
            num_clusters=clusters,
            num_classes=classes,
            parameters=sum(weight.numel() for weight in net.parameters()),
            feature_dim=width,
        )


def _feature_dim(study: Study) -> int:
    shape = features_shape(study)
    if shape is None:
        mend = "extract them first: cedm-ray features SPACE --study STUDY"
        raise ConfigurationError(f"{study.path} has no features yet that a network could take", mend=mend)
    return shape[1]


def _classes(condition: Condition) -> int:
    """Classes of the network that is tried: C where C^u is not known."""
    return condition.num_clusters or 0 if condition.num_classes is None else condition.num_classes


@contextlib.contextmanager
def _cores_of_a_trial(space: SearchSpace, device: str) -> Iterator[None]:
    """On a CPU, compute on as many cores as a worker of the trial will have, and not on all of the machine."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(max(1, int(space.resources.trial.cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(
    space: SearchSpace, pixels: np.ndarray, condition: Condition, size: int, device: str
) -> Iterator[Progress | Notice | tuple[float, int]]:
    """Yields progress, and (images per second of one worker, images of a step) last."""
    share = space.training.batch_size // space.resources.trial.workers
    if device == "cpu":
        # Of a large network a few images tell as much as the whole batch, which would take too long. Of a small one a
        # step takes about as long for one image as for many, and one alone would tell nothing of them.
        share, most = 1, share
        while share < most:
            tries = _timed(space, pixels, condition, size, device, batch_size=share, steps=3)
            # The shorter of two, because one that something else held up would stand for all that follow.
            step_s = min(after - before for (before, _), (after, _) in itertools.pairwise(tries))
            if 2 * step_s > CPU_S / STEPS:
                break
            share = min(2 * share, most)
    started = ended = 0.0
    for step, (now, note) in enumerate(_timed(space, pixels, condition, size, device, share, STEPS + 1)):
        if note is not None:
            yield Notice(text=note)
        started, ended = (now if step == 0 else started), now
        yield Progress(task="dry run", done=step, total=STEPS, unit="steps", ended=step == STEPS)
    yield STEPS * share / (ended - started), share


def _timed(
    space: SearchSpace, pixels: np.ndarray, condition: Condition, size: int, device: str, batch_size: int, steps: int
) -> Iterator[tuple[float, str | None]]:
    """Train a fresh network; after each step (the clock in seconds, what training had to say)."""
    config = space.training.model_copy(update={"batch_size": batch_size})
    num_classes, width = _classes(condition), condition.feature_dim
    conditions = np.arange(len(pixels)) % num_classes if num_classes else None
    if width:
        conditions = np.full((len(pixels), width), width**-0.5, dtype=np.float32)
    state = TrainState.create(
        space.network,
        space.edm,
        config,
        space.augmentation,
        size,
        num_classes,
        space.seed,
        device,
        feature_dim=width,
    )
    progress = train(
        state,
        pixels,
        conditions,
        config=config,
        augment=space.augmentation,
        order=TrainingOrder(num_images=len(pixels), seed=space.seed),
        seed=space.seed,
        until_images=steps * batch_size,
        total_kimg=space.rungs.rungs_kimg[-1],
        progress_every=batch_size,
    )
    for step in progress:
        yield time.monotonic(), step.note
