"""Sampling from the models of a study: what is wanted, settled into plain values, and the sampler that does it.

A job is settled once, where the user is told what cannot be; any process that sees the study can then open it and
generate any seeds of it. An image is a function of the job and its seed (`about` says of what), up to the rounding of
the network.

Shapes: b images of a batch, n seeds, K classes (used clusters), S image side.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.diffusion.sample import (
    SampleConfig,
    draw_latents_and_conditions,
    sample,
    sample_with_classes,
)
from cedm_ray.errors import ConfigurationError
from cedm_ray.features.extractors import absolute_spec
from cedm_ray.search.confidence import HeadConfidence, confident_images, open_confidence
from cedm_ray.search.model import EMA_FILE, Meaning, TrainedModel, find_checkpoint, open_model
from cedm_ray.search.results import Show
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.search.trial import load_assignment

# Rejection works on so many batches of seeds at a time: only their last batches are not full.
_REJECTION_BATCHES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Where the clusters of the images come from. kind: `q`, drawn in the proportion of the training images; `uniform`,
    each used cluster alike; `list`, where seed s has entry s mod the length of `clusters`, original ids."""

    kind: Literal["q", "uniform", "list"] = "q"
    clusters: tuple[int, ...] = ()

    @classmethod
    def read(cls, text: str) -> "Condition":
        """From `q`, `uniform` or `list:3,5,7`. Raises ConfigurationError."""
        if text in ("q", "uniform"):
            return cls(kind=text)
        if re.fullmatch(r"list:[0-9]{1,9}(,[0-9]{1,9})*", text):
            return cls(kind="list", clusters=tuple(int(entry) for entry in text.removeprefix("list:").split(",")))
        raise ConfigurationError(f"--condition must be q, uniform or list:3,5,7, got {text!r}")

    def __str__(self) -> str:
        return self.kind + (":" + ",".join(map(str, self.clusters)) if self.clusters else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleJob:
    """What to sample, in values that travel to any process that sees the study.

    study: absolute. space: of the study, its extractor located. num_clusters: C of the model, None = none.
    checkpoint, guide: folders of checkpoints, guide None where there is no autoguidance. config: of the sampler,
    guidance included. min_confidence: None = every image is kept. max_tries: candidates of a seed where one is given.
    about: everything that the images are a function of. fit: name of the fit that the clusters are of, None = the first
    of that C.
    """

    study: Path
    space: SearchSpace
    num_clusters: int | None
    checkpoint: Path
    guide: Path | None
    condition: Condition
    config: SampleConfig
    min_confidence: float | None
    max_tries: int
    about: dict[str, Any]
    fit: str | None = None

    @property
    def rows_at_once(self) -> int:
        """Seeds that are worked on together: a batch, or several where some of their images are rejected."""
        return self.config.batch_size * (1 if self.min_confidence is None else _REJECTION_BATCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """A batch of generated images. seeds: int64 [b]. images: uint8 [b, 3, S, S]. clusters: the original id of each
    image's condition, int64 [b], None for a model without clusters. decided: seeds that this batch settles, more than b
    where some have no confident image. drawn: images generated for it."""

    seeds: np.ndarray
    images: np.ndarray
    clusters: np.ndarray | None
    decided: int
    drawn: int


def settle_job(
    study: Study,
    space: SearchSpace,
    *,
    trial: str | None,
    condition: Condition,
    guide: str | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    min_confidence: float | None = None,
    max_tries: int = 10,
    show: Show,
) -> SampleJob:
    """Find the models and check that everything fits together.

    trial, guide: as `find_checkpoint`, and a guide may be of another study (`find_elsewhere`); trial None = the best.
    guidance, steps: None = those that the model was evaluated with. Raises ConfigurationError, IntegrityError.
    """
    checkpoint = find_checkpoint(study, trial, show)
    meaning = Meaning.from_json(checkpoint.manifest)
    _check_condition(meaning, condition)
    config = meaning.sampling
    if steps is not None:
        config = config.model_copy(update={"num_steps": steps})
    if guidance is not None:
        config = config.model_copy(update={"guidance": guidance})
    found = None
    if guide is not None:
        other, found = find_elsewhere(study, guide, show)
        _check_guide(study, meaning, other, Meaning.from_json(found.manifest))
        if not config.guidance:
            raise ConfigurationError("a guide has no effect without a weight", mend="add --guidance W, such as 1")
        if _digest(found) == _digest(checkpoint):
            raise ConfigurationError("a model cannot guide itself", mend="name an earlier or a smaller one: --guide")
    elif guidance:
        _check_null_label(meaning)
    if min_confidence is not None:
        if not 0 < min_confidence <= 1:
            raise ConfigurationError(f"--min-confidence must lie in (0, 1], got {min_confidence:g}")
        # Opened here as well: what is missing is then found before any worker starts.
        open_confidence(study, space, meaning.num_clusters, "cpu", fit=meaning.fit)
    features = space.features.model_copy(update={"extractor": absolute_spec(space.features.extractor)})
    return SampleJob(
        study=study.path.absolute(),
        space=space.model_copy(update={"features": features}),
        num_clusters=meaning.num_clusters,
        fit=meaning.fit,
        checkpoint=checkpoint.folder.absolute(),
        guide=None if found is None else found.folder.absolute(),
        condition=condition,
        config=config,
        min_confidence=min_confidence,
        max_tries=max_tries,
        about={
            "model": _identity(checkpoint),
            "guide": None if found is None else _identity(found),
            "condition": str(condition),
            "sampling": config.model_dump(mode="json", exclude={"batch_size", "compile"}),
            "min_confidence": min_confidence,
            "max_tries": None if min_confidence is None else max_tries,
        },
    )


def find_elsewhere(study: Study, name: str, show: Show) -> tuple[Study, durable.Checkpoint]:
    """A checkpoint by `[STUDY:]TRIAL[@KIMG]`, and the study that it is of; `STUDY:` alone is that study's best model.

    Raises as `find_checkpoint`.
    """
    place, colon, trial = name.rpartition(":")
    other = Study(Path(place)) if colon else study
    return other, find_checkpoint(other, trial or None, show)


def same_clusters(study: Study, meaning: Meaning, other: Study, theirs: Meaning) -> bool:
    """Whether models of two studies are conditioned on the same clusters of the same images."""
    if open_image_set(study.images).digest != open_image_set(other.images).digest:
        return False
    both = ((study, meaning), (other, theirs))
    labels = (load_assignment(place, one.num_clusters, one.fit).labels for place, one in both)
    return np.array_equal(*labels)


def _check_condition(meaning: Meaning, condition: Condition) -> None:
    if condition.kind != "q" and not meaning.class_ids:
        raise ConfigurationError(f"{meaning.trial} was not trained on clusters: --condition must be q, got {condition}")
    meaning.classes_of(condition.clusters)


def _check_guide(study: Study, meaning: Meaning, other: Study, theirs: Meaning) -> None:
    if theirs.image_size != meaning.image_size:
        sizes = f"{meaning.image_size} and {theirs.image_size} pixels"
        raise ConfigurationError(f"model and guide must have one image size, got {sizes}")
    if not theirs.is_conditional:
        return
    if theirs.features_key != meaning.features_key:
        mend = "name an unconditional guide, or one that was trained on the model's own condition"
        raise ConfigurationError(f"{theirs.trial} cannot guide {meaning.trial}: its condition is another", mend=mend)
    if theirs.feature_dim:
        return
    fits = theirs.num_clusters == meaning.num_clusters
    if fits and (other.path.absolute() != study.path.absolute() or theirs.fit != meaning.fit):
        fits = same_clusters(study, meaning, other, theirs)
    if not fits:
        mend = "name an unconditional guide, or one that was trained on the model's own clusters"
        raise ConfigurationError(f"{theirs.trial} cannot guide {meaning.trial}: its clusters are others", mend=mend)


def _check_null_label(meaning: Meaning) -> None:
    mend = "guide by another model: --guide [STUDY:]TRIAL[@KIMG]"
    if not meaning.is_conditional:
        raise ConfigurationError(f"{meaning.trial} has no condition that could guide it", mend=mend)
    if not meaning.network.label_dropout:
        text = f"{meaning.trial} was trained without a null label (network.label_dropout was 0)"
        raise ConfigurationError(f"{text}, which classifier-free guidance needs", mend=mend)


def _digest(checkpoint: durable.Checkpoint) -> str:
    return checkpoint.manifest["files"][EMA_FILE]["sha256"]


def _identity(checkpoint: durable.Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {"trial": manifest["trial"], "images_seen": manifest["images_seen"], "weights": _digest(checkpoint)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A job with its models opened."""

    job: SampleJob
    model: TrainedModel
    guide: TrainedModel | None
    confidence: HeadConfidence | None

    def generate(self, seeds: Sequence[int]) -> Iterator[Samples]:
        """The images of the seeds in their order, at most `config.batch_size` at once in the network."""
        if self.confidence is not None:
            for start in range(0, len(seeds), self.job.rows_at_once):
                yield from self._confident(seeds[start : start + self.job.rows_at_once])
            return
        position = 0
        for images, clusters in self._batches(seeds):
            own = np.asarray(seeds[position : position + len(images)], dtype=np.int64)
            position += len(images)
            yield Samples(seeds=own, images=images, clusters=clusters, decided=len(images), drawn=len(images))

    def _settings(self) -> dict[str, Any]:
        return {
            "config": self.job.config,
            "image_size": self.model.meaning.image_size,
            "guide": None if self.guide is None else self.guide.denoiser,
            "device": self.model.device,
        }

    def _batches(self, seeds: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Images and the clusters that they are conditioned on."""
        denoiser, meaning = self.model.denoiser, self.model.meaning
        if not meaning.class_ids:
            yield from ((images, None) for images in sample(denoiser, seeds, bank=self.model.bank, **self._settings()))
        elif self.job.condition.kind == "list":
            classes, position = self._classes(seeds), 0
            for images in sample(denoiser, seeds, classes=classes, **self._settings()):
                yield images, self._clusters(classes[position : position + len(images)])
                position += len(images)
        else:
            for images, drawn in sample_with_classes(denoiser, seeds, self._counts(), **self._settings()):
                yield images, self._clusters(drawn)

    def _confident(self, seeds: Sequence[int]) -> Iterator[Samples]:
        classes, own = self._classes(seeds), np.asarray(seeds, dtype=np.int64)

        def generate(candidates: list[int], positions: list[int]) -> np.ndarray:
            batches = sample(self.model.denoiser, candidates, classes=classes[positions], **self._settings())
            return np.concatenate(list(batches))

        for kept in confident_images(
            seeds,
            generate,
            self.confidence,
            minimum=self.job.min_confidence,
            max_tries=self.job.max_tries,
            batch_size=self.job.config.batch_size,
        ):
            yield Samples(
                seeds=own[kept.positions],
                images=kept.images,
                clusters=self._clusters(classes[kept.positions]),
                decided=kept.seeds,
                drawn=kept.drawn,
            )

    def _counts(self) -> np.ndarray:
        """What classes are drawn in proportion to, int64 [K]."""
        counts = np.asarray(self.model.meaning.counts, dtype=np.int64)
        return counts if self.job.condition.kind == "q" else np.ones_like(counts)

    def _classes(self, seeds: Sequence[int]) -> np.ndarray:
        """The class of every seed, int64 [n]."""
        if self.job.condition.kind == "list":
            listed = np.array(self.model.meaning.classes_of(self.job.condition.clusters))
            return listed[np.asarray(seeds, dtype=np.int64) % len(listed)]
        return draw_latents_and_conditions(seeds, self.model.meaning.image_size, self._counts())[1].numpy()

    def _clusters(self, classes: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.meaning.class_ids, dtype=np.int64)[classes]


def open_sampler(job: SampleJob, device: str) -> Sampler:
    """The models of a job on `device`. Raises IntegrityError where a checkpoint is damaged, or gone by now."""
    study = Study(job.study)
    model = open_model(durable.read_checkpoint(job.checkpoint), device, study)
    # A guide may be of another study; where it has features, they are those of this one.
    guide = None if job.guide is None else open_model(durable.read_checkpoint(job.guide), device, study)
    confidence = None
    if job.min_confidence is not None:
        confidence = open_confidence(study, job.space, job.num_clusters, device, fit=job.fit)
    return Sampler(job=job, model=model, guide=guide, confidence=confidence)
