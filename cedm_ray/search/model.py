"""A trained model on disk: what training needs to go on, and what sampling needs to begin.

A checkpoint holds two safetensors files: `ema.safetensors`, the averaged weights that sampling uses, and
`training.safetensors`, the rest of the training state. The manifest holds what the weights mean. A kept model is a
checkpoint without the second file, so that everything samples from everything by one path.

K classes of the network: the C^u clusters in use, renumbered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from cedm_ray import durable
from cedm_ray.config import Config
from cedm_ray.diffusion.edm import Denoiser, EDMConfig
from cedm_ray.diffusion.sample import SampleConfig, sample_on_device
from cedm_ray.diffusion.train import TrainState
from cedm_ray.diffusion.unet import UNet, UNetConfig
from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.search.feature_bank import unit_features
from cedm_ray.search.results import Notice, Show
from cedm_ray.search.study import Study

EMA_FILE = "ema.safetensors"
TRAINING_FILE = "training.safetensors"
_EMA = "ema."


class CheckpointConfig(Config):
    """When training state is written.

    every_kimg: thousands of images between checkpoints; None = at rungs only. A crash repeats at most one interval, and
    with it what was trained while its checkpoint was still being written (`checkpoints.py`). keep: checkpoints kept of
    each trial, at least 2, so that a damaged one has another behind it.
    """

    every_kimg: float | None = Field(default=None, ge=0.001)
    keep: int = Field(default=2, ge=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What the weights of one trial are: the manifest's own part.

    num_clusters: C, None for a model without clusters. class_ids: the original cluster id of every class, [K].
    counts: training images of every class, [K]; q(c) is counts / N. Both are empty for a model without clusters.
    features_key: of the study's features that are the condition, and feature_dim their width; None and 0 without. fit:
    name of the fit that the clusters are of, None = the first of that C.
    """

    trial: str
    num_clusters: int | None
    class_ids: tuple[int, ...]
    counts: tuple[int, ...]
    image_size: int
    augment_dim: int
    network: UNetConfig
    edm: EDMConfig
    sampling: SampleConfig
    features_key: str | None = None
    feature_dim: int = 0
    fit: str | None = None

    @property
    def is_conditional(self) -> bool:
        """Whether the network takes a condition, clusters or features."""
        return bool(self.class_ids) or self.feature_dim > 0

    def classes_of(self, clusters: Sequence[int]) -> list[int]:
        """The classes that stand for clusters, by their original ids. Raises ConfigurationError for one that the model
        does not know."""
        # Asked at every batch, and clusters may be listed for each of many thousand images.
        classes = {cluster: index for index, cluster in enumerate(self.class_ids)}
        for cluster in clusters:
            if cluster not in classes:
                known = f"its {len(classes)} used clusters lie between {min(classes)} and {max(classes)}"
                raise ConfigurationError(f"{self.trial} was not trained on a cluster {cluster}: {known}")
        return [classes[cluster] for cluster in clusters]

    def to_json(self) -> dict[str, Any]:
        # Left out where they say nothing, so that what is known of other models keeps its digest.
        about = {"features_key": self.features_key, "feature_dim": self.feature_dim} if self.feature_dim else {}
        about |= {} if self.fit is None else {"fit": self.fit}
        return about | {
            "trial": self.trial,
            "num_clusters": self.num_clusters,
            "class_ids": list(self.class_ids),
            "counts": list(self.counts),
            "image_size": self.image_size,
            "augment_dim": self.augment_dim,
            "network": self.network.model_dump(mode="json"),
            "edm": self.edm.model_dump(mode="json"),
            "sampling": self.sampling.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Meaning":
        return cls(
            trial=value["trial"],
            num_clusters=value["num_clusters"],
            class_ids=tuple(value["class_ids"]),
            counts=tuple(value["counts"]),
            image_size=value["image_size"],
            augment_dim=value["augment_dim"],
            network=UNetConfig.model_validate(value["network"]),
            edm=EDMConfig.model_validate(value["edm"]),
            sampling=SampleConfig.model_validate(value["sampling"]),
            features_key=value.get("features_key"),
            feature_dim=value.get("feature_dim", 0),
            fit=value.get("fit"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A copy of a training state on the host, which training goes on without changing."""

    tensors: dict[str, torch.Tensor]
    images_seen: int
    skipped_steps: int

    @classmethod
    def take(cls, state: TrainState) -> "Snapshot":
        return cls(tensors=state.tensors(), images_seen=state.images_seen, skipped_steps=state.skipped_steps)


def save_checkpoint(parent: Path, snapshot: Snapshot, meaning: Meaning, keep: int) -> None:
    """Write a snapshot as the newest checkpoint below `parent` and remove all but `keep`. Raises StorageError."""
    tensors = {name: tensor.numpy() for name, tensor in snapshot.tensors.items()}
    ema = {name: array for name, array in tensors.items() if name.startswith(_EMA)}
    rest = {name: array for name, array in tensors.items() if not name.startswith(_EMA)}
    files = {EMA_FILE: durable.pack_tensors(ema, {}), TRAINING_FILE: durable.pack_tensors(rest, {})}
    counters = {"images_seen": snapshot.images_seen, "skipped_steps": snapshot.skipped_steps}
    durable.write_checkpoint(parent / f"{snapshot.images_seen:012d}", files, {**counters, **meaning.to_json()})
    durable.keep_checkpoints(parent, keep)


def load_checkpoint(checkpoint: durable.Checkpoint, state: TrainState) -> None:
    """Put a checkpoint's tensors and counters into `state`. Raises IntegrityError, or ValueError on another network."""
    tensors: dict[str, torch.Tensor] = {}
    for name in (EMA_FILE, TRAINING_FILE):
        arrays, _ = durable.unpack_tensors(checkpoint.files[name], str(checkpoint.folder / name))
        tensors.update((key, torch.from_numpy(array)) for key, array in arrays.items())
    manifest = checkpoint.manifest
    state.load(tensors, images_seen=manifest["images_seen"], skipped_steps=manifest["skipped_steps"])


def keep_model(checkpoint: durable.Checkpoint, folder: Path) -> None:
    """Keep a checkpoint's averaged weights, and what is needed to sample from them, in a folder of their own."""
    manifest = {name: value for name, value in checkpoint.manifest.items() if name != "files"}
    durable.write_checkpoint(folder, {EMA_FILE: checkpoint.files[EMA_FILE]}, manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A model to sample from. denoiser: the averaged weights on `device`. images_seen: what it was trained on. bank:
    features of the training images that conditions are drawn from, float32 [N, D] of unit length; None without."""

    denoiser: Denoiser
    meaning: Meaning
    images_seen: int
    device: str
    bank: np.ndarray | None = None

    def sample(
        self, seeds: Sequence[int], *, classes: Sequence[int] | None = None, config: SampleConfig | None = None
    ) -> Iterator[np.ndarray]:
        """Images of the given seeds in order, uint8 [b, 3, S, S] a batch, of NumPy; else as `sample_on_device`."""
        for images in self.sample_on_device(seeds, classes=classes, config=config):
            yield images.cpu().numpy()

    def sample_on_device(
        self, seeds: Sequence[int], *, classes: Sequence[int] | None = None, config: SampleConfig | None = None
    ) -> Iterator[torch.Tensor]:
        """Images of the given seeds in order, uint8 [b, 3, S, S] a batch, on the model's device.

        classes: class of every image, [len(seeds)], each in [0, K); None draws them from q(c), each by its own seed. A
        model of features draws the training image whose features it takes, by its seed too.
        config: None = the sampler that the model was evaluated with.
        """
        drawn = classes is None and self.meaning.counts
        return sample_on_device(
            self.denoiser,
            seeds,
            config=config or self.meaning.sampling,
            image_size=self.meaning.image_size,
            counts=np.asarray(self.meaning.counts, dtype=np.int64) if drawn else None,
            classes=classes,
            bank=self.bank,
            device=self.device,
        )


def open_model(checkpoint: durable.Checkpoint, device: str, study: Study) -> TrainedModel:
    """The averaged model of a checkpoint or of a kept model, ready to sample.

    study: that the checkpoint is of, where a model of features finds them. Raises IntegrityError, and InputDataError
    where those features are gone.
    """
    meaning = Meaning.from_json(checkpoint.manifest)
    classes, width = len(meaning.class_ids), meaning.feature_dim
    net = UNet(meaning.network, meaning.image_size, classes, meaning.augment_dim, feature_dim=width)
    arrays, _ = durable.unpack_tensors(checkpoint.files[EMA_FILE], str(checkpoint.folder / EMA_FILE))
    net.load_state_dict({name.removeprefix(_EMA): torch.from_numpy(array) for name, array in arrays.items()})
    # In the layout that training and its evaluations use: another layout rounds differently.
    denoiser = Denoiser(net, meaning.edm).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return TrainedModel(
        denoiser=denoiser,
        meaning=meaning,
        images_seen=checkpoint.manifest["images_seen"],
        device=device,
        bank=None if meaning.features_key is None else unit_features(study, meaning.features_key),
    )


def find_model(study: Study, trial: str | None, device: str, show: Show) -> TrainedModel:
    """The model of `find_checkpoint`, on `device`."""
    return open_model(find_checkpoint(study, trial, show), device, study)


def find_checkpoint(study: Study, trial: str | None, show: Show) -> durable.Checkpoint:
    """The kept best model of a study, or the newest checkpoint of a trial; `show` is told of damaged ones passed over.

    trial: None = the best model; `NAME` or `NAME@KIMG`, the checkpoint at so many thousand images. Raises
    ConfigurationError where there is none of that name, IntegrityError where all are damaged.
    """
    if trial is None:
        if not (study.best / durable.MANIFEST).exists():
            named = f", or name a trial: --trial {', '.join(study.trials())}" if study.trials() else ""
            raise ConfigurationError(f"{study.path} has no best model yet", mend=f"let the search finish{named}")
        try:
            return durable.read_checkpoint(study.best)
        except IntegrityError as error:
            mend = f"remove {study.best} and run the search again, which keeps it anew from the trial's checkpoint"
            raise IntegrityError(str(error), mend=mend) from None
    name, at, kimg = trial.partition("@")
    if at:
        return _checkpoint_at(study, name, kimg)
    checkpoint = durable.newest_checkpoint(study.checkpoints(name))
    if checkpoint is None:
        raise _no_trial(study, name)
    for reason in checkpoint.fallbacks:
        show(Notice(text=f"taking {name} at {checkpoint.manifest['images_seen']:,} images: {reason}"))
    return checkpoint


def _checkpoint_at(study: Study, name: str, kimg: str) -> durable.Checkpoint:
    found = sorted(path.parent for path in study.checkpoints(name).glob(f"*/{durable.MANIFEST}"))
    if not found:
        raise _no_trial(study, name)
    # As text with all its digits: a budget of 100,000 kimg ends a few images later, at 100000.256 perhaps.
    by_kimg = {f"{int(folder.name) / 1000:.12g}": folder for folder in found}
    if kimg not in by_kimg:
        mend = "name one of them; checkpoints.keep says how many are kept while a trial trains"
        raise ConfigurationError(f"{name} has checkpoints at {', '.join(by_kimg)} kimg and none at {kimg}", mend=mend)
    return durable.read_checkpoint(by_kimg[kimg])


def _no_trial(study: Study, name: str) -> ConfigurationError:
    known = ", ".join(study.trials()) or "none yet"
    return ConfigurationError(f"{study.path} has no trained model of {name!r}; its trials are: {known}")
