"""run_trial: train one C-EDM and measure it at every rung. A generator: the driver decides whether it goes on.

A report is written, and the checkpoint that it rests on before it, before it is yielded; checkpoints in between are
written while training goes on (`checkpoints.py`). A trial that is run again after any death repeats what it trained
since its last whole checkpoint, and never a report. Under data-parallel training every worker runs this same
generator; the first one writes.
"""

import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from cedm_ray import durable
from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import NUM_LABELS
from cedm_ray.diffusion.sample import sample_on_device
from cedm_ray.diffusion.train import DivergedError, TrainProgress, TrainState, train
from cedm_ray.errors import InputDataError, IntegrityError
from cedm_ray.features.extractors import Extractor
from cedm_ray.metrics.frechet import ReferenceFactor, frechet_reference
from cedm_ray.search.checkpoints import CheckpointWriter
from cedm_ray.search.clusterings import neighbors_features, read_fit
from cedm_ray.search.evaluate import distance_to, image_statistics, low_rank_distance, merged_over_workers, own_share
from cedm_ray.search.feature_bank import unit_features
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.measure import open_detector, reference_statistics
from cedm_ray.search.model import Meaning, load_checkpoint
from cedm_ray.search.results import FEATURES, Notice, RungSamples, TrialReport
from cedm_ray.search.settings import Settings
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

# Progress is told so often, and at least every so many steps, so that no log is silent for long on slow hardware.
PROGRESS_PER_RUNG, PROGRESS_STEPS = 50, 20

SHOWN_IMAGES = 64
"""How many of a rung's images are told of, to be looked at."""


def load_assignment(study: Study, num_clusters: int, fit: str | None = None) -> ClusterAssignment:
    """The assignment that trials of this C are conditioned on: that of its first fit, or of the fit of that name."""
    return read_fit(study, fit or FitTask(num_clusters=num_clusters, repeat=0).name, num_clusters)


def run_trial(
    study: Study,
    space: SearchSpace,
    num_clusters: int | None,
    *,
    device: str,
    features: bool = False,
    seed: int = 0,
    final: bool = False,
    proposal: int = 0,
    changes: Settings = (),
) -> Iterator[TrainProgress | RungSamples | TrialReport | Notice]:
    """Train on C = `num_clusters` clusters through all rungs of the space (None: unconditionally, or with `features` on
    the images' feature vectors).

    seed: above 0 trains with other weights, order and noise on the same clusters, as a trial of its own. final: train
    on to finals.budget_kimg, which is one rung more and the only one that is reported. proposal, changes: of the
    `TrainTask`; the space has the changes in it.
    Yields TrainProgress while training and one TrialReport at every rung, those of an earlier run included, each one
    that is new after its RungSamples, while there is no record of it yet. Raises InputDataError where the clustering
    gives no condition, IntegrityError, StorageError.
    """
    images = open_image_set(study.images)
    if features:
        meaning, conditions = _feature_conditions(study, space, images)
    else:
        task = TrainTask(num_clusters=num_clusters, seed=seed, proposal=proposal, changes=changes)
        meaning, conditions = _conditions(study, space, images, task)
    detector = open_detector(space, images, device)
    reference = frechet_reference(reference_statistics(study, space, images, detector))
    state = TrainState.create(
        space.network,
        space.edm,
        space.training,
        space.augmentation,
        image_size=meaning.image_size,
        num_classes=len(meaning.class_ids),
        seed=training_seed(space, seed),
        device=device,
        feature_dim=meaning.feature_dim,
    )
    if _is_first_worker():
        study.begin_trial(meaning.trial)
    folder = study.checkpoints(meaning.trial)
    checkpoint = durable.newest_checkpoint(folder)
    if checkpoint is not None:
        load_checkpoint(checkpoint, state)
        for reason in checkpoint.fallbacks:
            yield Notice(text=f"{meaning.trial} goes on from {checkpoint.folder.name} images: {reason}")
    with CheckpointWriter(folder, meaning, space.checkpoints.keep) as writer:
        levels = space.rungs.rungs_kimg + ((space.finals.budget_kimg,) if final else ())
        heard = len(space.rungs.rungs_kimg) if final else 0
        training = (levels, heard, training_seed(space, seed))
        yield from _rungs(study, space, state, images, conditions, meaning, training, (detector, reference), writer)


def _rungs(
    study: Study,
    space: SearchSpace,
    state: TrainState,
    images: ImageSet,
    conditions: np.ndarray | None,
    meaning: Meaning,
    training: tuple[tuple[float, ...], int, int],
    yardstick: tuple[Extractor, ReferenceFactor],
    writer: CheckpointWriter,
) -> Iterator[TrainProgress | RungSamples | TrialReport | Notice]:
    """From rung to rung. conditions: as `train` takes them. training: their levels in thousands of images, the first
    rung whose recorded report is said again, and the seed. yardstick: the detector and its statistics of the training
    images."""
    levels, heard, seed = training
    recorded = {report.rung: report for report in study.reports(meaning.trial)}
    for rung, rung_kimg in enumerate(levels):
        if rung in recorded:
            # Who trains the winner on has heard of the search's rungs, at the last of which the trial had ended.
            if rung >= heard:
                yield recorded[rung]
            continue
        rung_images = round(rung_kimg * 1000)
        if state.images_seen >= rung_images + space.training.batch_size:
            raise IntegrityError(
                f"{meaning.trial} has no report at {rung_kimg:g} kimg and is already at {state.images_seen:,} images",
                mend="restore the report from a backup, or begin another study",
            )
        started, losses, diverged = time.monotonic(), [], False
        images_before = state.images_seen
        while state.images_seen < rung_images and not diverged:
            until = min(rung_images, _next_checkpoint(space, state.images_seen))
            before = state.images_seen
            try:
                for progress in _train(space, state, images, conditions, seed, rung_images, until):
                    if progress.loss is not None:
                        losses.append((progress.loss, progress.images_seen - before))
                    before = progress.images_seen
                    if progress.note is not None:
                        yield Notice(text=f"{meaning.trial}: {progress.note}")
                    yield progress
            except DivergedError:
                diverged = True
            else:
                if _is_first_worker():
                    writer.save(state)
        trained = time.monotonic()
        distance, collapsed = None, False
        if not diverged:
            bank = conditions if meaning.feature_dim else None
            distance, collapsed, images_shown = _measure(space, state, meaning, bank, *yardstick)
            yield RungSamples(
                trial=meaning.trial,
                rung=rung,
                images_seen=state.images_seen,
                seeds=np.asarray(own_share(space.evaluation.seeds)[: len(images_shown)], dtype=np.int64),
                images=images_shown,
            )
        report = TrialReport(
            trial=meaning.trial,
            rung=rung,
            images_seen=state.images_seen,
            distance=distance,
            num_samples=space.evaluation.num_samples,
            loss=sum(loss * count for loss, count in losses) / sum(count for _, count in losses) if losses else None,
            train_s=round(trained - started, 3),
            evaluate_s=round(time.monotonic() - trained, 3),
            skipped_steps=state.skipped_steps,
            collapsed=collapsed,
            trained_images=state.images_seen - images_before,
            gpus=_gpus_held(space, state.device),
        )
        if _is_first_worker():
            writer.wait()
            study.write_report(report)
        _meet()
        yield report


def _measure(
    space: SearchSpace,
    state: TrainState,
    meaning: Meaning,
    bank: np.ndarray | None,
    detector: Extractor,
    reference: ReferenceFactor,
) -> tuple[float, bool, np.ndarray]:
    """The distance of the averaged model's images to the training images, whether they are all alike, and the first of
    them, uint8 [n, 3, S, S].

    bank: features that conditions are drawn from, None for a model that is not conditioned on features.
    """
    shown = [np.empty((0, 3, meaning.image_size, meaning.image_size), dtype=np.uint8)]
    generated = sample_on_device(
        state.ema,
        own_share(space.evaluation.seeds),
        config=space.rung_sampling,
        image_size=meaning.image_size,
        counts=np.asarray(meaning.counts, dtype=np.int64) if meaning.counts else None,
        bank=bank,
        device=state.device,
    )
    batches = _keeping(shown, generated)
    if space.evaluation.num_samples < detector.dim and not torch.distributed.is_initialized():
        distance, collapsed = low_rank_distance(batches, detector, reference)
    else:
        distance, collapsed = distance_to(reference, merged_over_workers(image_statistics(batches, detector)))
    return distance, collapsed, np.concatenate(shown)


def _keeping(shown: list[np.ndarray], batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The batches, of whose images the first are kept in `shown`."""
    missing = SHOWN_IMAGES
    for batch in batches:
        if missing:
            shown.append(batch[:missing].cpu().numpy())
            missing -= len(shown[-1])
        yield batch


def _train(
    space: SearchSpace,
    state: TrainState,
    images: ImageSet,
    conditions: np.ndarray | None,
    seed: int,
    rung_images: int,
    until: int,
) -> Iterator[TrainProgress]:
    """Train towards a rung, as far as `until`."""
    return train(
        state,
        images.pixels,
        conditions,
        config=space.training,
        augment=space.augmentation,
        order=TrainingOrder(num_images=len(images), seed=seed),
        seed=seed,
        until_images=until,
        # Of the search: what the schedule is made from stays the same when the winner is trained on.
        total_kimg=space.rungs.rungs_kimg[-1],
        progress_every=max(1, min(rung_images // PROGRESS_PER_RUNG, PROGRESS_STEPS * space.training.batch_size)),
    )


def training_seed(space: SearchSpace, seed: int) -> int:
    """The seed of a trial's weights, order and noise: the space's own for its first, others far from it for more."""
    return (space.seed + seed * 1_000_003) % 2**31


def _conditions(
    study: Study, space: SearchSpace, images: ImageSet, task: TrainTask
) -> tuple[Meaning, np.ndarray | None]:
    """What the network of this trial is, and the class of every training image (None: unconditional)."""
    class_ids: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    classes, num_clusters = None, task.num_clusters
    fit = task.fit.name if task.fit is not None and task.fit.changes else None
    if num_clusters is not None:
        assignment = load_assignment(study, num_clusters, fit)
        if assignment.num_used < 2:
            raise InputDataError(
                f"C = {num_clusters}: all images fell into one cluster, which is no condition",
                mend="train the clustering longer (clustering.epochs) or take other features (features.extractor)",
            )
        class_ids = tuple(assignment.used_ids.tolist())
        counts = tuple(assignment.compact_counts.tolist())
        classes = assignment.compact_labels
    about = {"num_clusters": num_clusters, "class_ids": class_ids, "counts": counts, "fit": fit}
    return _meaning(space, images, task.trial, **about), classes


def _feature_conditions(study: Study, space: SearchSpace, images: ImageSet) -> tuple[Meaning, np.ndarray]:
    """As `_conditions`, for the features that the study clusters: float32 [N, D] of unit length."""
    key = neighbors_features(study)
    if key is None:
        raise InputDataError(f"{study.path} has no features yet", mend="run cedm-ray features on it first")
    bank = unit_features(study, key)
    return _meaning(space, images, FEATURES, features_key=key, feature_dim=bank.shape[1]), bank


def _meaning(
    space: SearchSpace,
    images: ImageSet,
    trial: str,
    *,
    num_clusters: int | None = None,
    class_ids: tuple[int, ...] = (),
    counts: tuple[int, ...] = (),
    fit: str | None = None,
    features_key: str | None = None,
    feature_dim: int = 0,
) -> Meaning:
    return Meaning(
        trial=trial,
        num_clusters=num_clusters,
        class_ids=class_ids,
        counts=counts,
        image_size=images.size,
        augment_dim=NUM_LABELS if space.augmentation.probability else 0,
        network=space.network,
        edm=space.edm,
        sampling=space.sampling,
        fit=fit,
        features_key=features_key,
        feature_dim=feature_dim,
    )


def _next_checkpoint(space: SearchSpace, images_seen: int) -> float:
    """The images seen at which the next checkpoint between rungs is due; infinity for none."""
    if space.checkpoints.every_kimg is None:
        return float("inf")
    interval = round(space.checkpoints.every_kimg * 1000)
    return (images_seen // interval + 1) * interval


def _gpus_held(space: SearchSpace, device: torch.device) -> float:
    """GPUs of all workers of a trial, shares allowed."""
    trial = space.resources.trial
    each = 1.0 if trial.gpus is None else trial.gpus
    return trial.workers * each if device.type == "cuda" else 0.0


def _is_first_worker() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _meet() -> None:
    """Let no data-parallel worker go on before all are here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
