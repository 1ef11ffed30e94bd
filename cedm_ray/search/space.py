"""SearchSpace: one YAML file, whose sections are the configurations of the rooms."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from cedm_ray.clustering.bound import BoundConfig
from cedm_ray.clustering.kmeans import KMeansConfig
from cedm_ray.clustering.lower_bound import LowerBoundConfig
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.config import Config, read_config
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.sample import SampleConfig
from cedm_ray.diffusion.train import TrainConfig
from cedm_ray.diffusion.unet import UNetConfig
from cedm_ray.errors import ConfigurationError
from cedm_ray.features.extractors import FeaturesConfig
from cedm_ray.search.asha import AshaConfig
from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.evaluate import EvaluationConfig
from cedm_ray.search.finals import FinalsConfig
from cedm_ray.search.model import CheckpointConfig
from cedm_ray.search.settings import (
    CLUSTERING,
    EXTRACTOR,
    KMEANS,
    METHOD,
    METHODS,
    WITHOUT_C,
    Range,
    Settings,
    between,
    corners,
    frozen,
    shown,
    told,
    why_not,
)

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"


class FitResources(Config):
    """What one TEMI fit holds. cpus: cores. gpus: share of a GPU; None = a quarter where there are GPUs, else 0.

    at_once: how many fits run side by side at the most; doublings of C are asked that far ahead.
    """

    cpus: float = Field(default=1, gt=0)
    gpus: float | None = Field(default=None, ge=0, le=1)
    at_once: int = Field(default=4, ge=1)


class TrialResources(Config):
    """What one C-EDM trial holds.

    workers: data-parallel processes. cpus, gpus: of each worker; gpus None = one where there are GPUs, else 0. A
    fraction of a GPU is possible for one worker only, because NCCL refuses two ranks on one device.
    nested: True runs a trial of one worker as a Ray Train run of its own too, as those of several always do.
    """

    workers: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0)
    gpus: float | None = Field(default=None, ge=0)
    nested: bool = False

    @model_validator(mode="after")
    def _whole_gpus(self) -> "TrialResources":
        if self.gpus is not None and self.gpus % 1 and (self.workers > 1 or self.gpus > 1):
            raise ValueError(f"gpus must be whole for several workers or more than one GPU, got {self.gpus}")
        return self


class ResourcesConfig(Config):
    """What is asked of the cluster; it changes no result and may change when a study is resumed."""

    fit: FitResources = FitResources()
    trial: TrialResources = TrialResources()


class SearchSpace(Config):
    """Everything a search does. name: of the space, for reports. seed: of every random choice in the study."""

    name: str = Field(pattern=NAME_PATTERN)
    seed: int = Field(default=0, ge=0, lt=2**31)
    images: ImagesConfig
    features: FeaturesConfig = FeaturesConfig()
    clustering: TemiConfig = TemiConfig()
    kmeans: KMeansConfig = KMeansConfig()
    bound: BoundConfig = BoundConfig()
    lower_bound: LowerBoundConfig = LowerBoundConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    rungs: AshaConfig = AshaConfig()
    finals: FinalsConfig = FinalsConfig()
    network: UNetConfig = UNetConfig()
    edm: EDMConfig = EDMConfig()
    augmentation: AugmentConfig = AugmentConfig()
    training: TrainConfig = TrainConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    sampling: SampleConfig = SampleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @property
    def rung_sampling(self) -> SampleConfig:
        """The sampler at rungs: `sampling`, with evaluation.num_steps where that is set."""
        steps = self.evaluation.num_steps
        return self.sampling if steps is None else self.sampling.model_copy(update={"num_steps": steps})

    @model_validator(mode="after")
    def _null_label_for_guidance(self) -> "SearchSpace":
        if self.sampling.guidance and not self.network.label_dropout:
            rule = "sampling.guidance needs network.label_dropout above 0, without which there is no null label"
            raise ValueError(f"{rule}; got guidance {self.sampling.guidance:g}")
        return self

    @model_validator(mode="after")
    def _budget_beyond_the_search(self) -> "SearchSpace":
        full, last = self.rungs.rungs_kimg[-1], self.finals.budget_kimg
        if last is not None and last <= full:
            raise ValueError(f"finals.budget_kimg must lie above the last rung, {full:g}; got {last:g}")
        return self

    @model_validator(mode="after")
    def _settings_that_may_be_searched(self) -> "SearchSpace":
        also, plain = self.candidates.also, self.model_dump()
        for path in also:
            if (reason := why_not(path, plain)) is not None:
                raise ValueError(f"candidates.also cannot have {path}: {reason}")
            words = also[path] if isinstance(also[path], tuple) else ()
            for word in words if path == METHOD else ():
                if (reason := WITHOUT_C.get(str(word))) is not None:
                    compared = f"to compare with it, see cedm-ray cluster --method {word}"
                    raise ValueError(f"candidates.also: {METHOD} cannot be {word}: {reason}; {compared}")
            if path == METHOD and not (words and all(word in METHODS for word in words)):
                raise ValueError(f"candidates.also: {METHOD} must list some of {', '.join(METHODS)}")
            if path == EXTRACTOR and not (words and all(isinstance(word, str) for word in words)):
                raise ValueError(f"candidates.also: {EXTRACTOR} must list extractors")
        needless = [path for path in also if path.startswith(CLUSTERING) and path != METHOD]
        if also.get(METHOD) == (KMEANS,) and needless:
            raise ValueError(
                f"candidates.also cannot have {needless[0]}: k-means, the only {METHOD}, has no such setting"
            )
        for values in corners(also) if also else ():
            self._check_changed(values)
        for values in between(self.own, also) if also else ():
            self._check_changed(values, mend="; list the values of what has no such range")
        return self

    def _check_changed(self, values: dict[str, Any], mend: str = "") -> None:
        """Raise ValueError where no trial could have those values."""
        try:
            self.changed(frozen(values))
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            reason = found["msg"].removeprefix("Value error, ")
            which = "".join(f"{'.'.join(map(str, found['loc']))}: " if found["loc"] else "")
            text = f"candidates.also with {told(values)}: {which}{reason[:1].lower()}{reason[1:]}{mend}"
            raise ValueError(text) from None

    def check_searched(self, image_size: int) -> None:
        """Raise ConfigurationError where trials with one of the searched values could not train on images of that side
        in pixels, with the workers of resources.trial."""
        also, workers = self.candidates.also, self.resources.trial.workers
        for mult in also.get("network.channel_mult", ()):
            step = self.changed((("network.channel_mult", mult),)).network.side_step
            if image_size % step:
                raise ConfigurationError(
                    f"candidates.also: network.channel_mult {shown(mult)} is for images whose side is a multiple of "
                    f"{step}, and these have {image_size} pixels",
                    mend="leave it out, or set another images.size, in a new study",
                )
        sizes = also.get("training.batch_size", ())
        # Of a range the next after the lowest speaks for all.
        for size in (sizes.low, sizes.low + 1) if isinstance(sizes, Range) else sizes:
            if int(size) % workers:
                raise ConfigurationError(
                    f"candidates.also: training.batch_size {shown(size)} is not divisible by resources.trial.workers "
                    f"{workers}",
                    mend=f"list multiples of {workers}",
                )

    @property
    def own(self) -> dict[str, Any]:
        """The space's own values of the settings that are searched besides C, by path."""
        paths = [(path, *path.split(".")) for path in self.candidates.also if path != METHOD]
        method = {METHOD: METHODS[0]} if METHOD in self.candidates.also else {}
        return method | {path: getattr(getattr(self, section), name) for path, section, name in paths}

    @property
    def other_extractors(self) -> tuple[str, ...]:
        """Extractors that are searched besides the space's own."""
        words = self.candidates.also.get(EXTRACTOR, ())
        return tuple(word for word in words if word != self.features.extractor)

    def changed(self, changes: Settings) -> "SearchSpace":
        """The space of one trial or fit of a search for more than C: with those settings, and as one that searches C
        alone. Raises pydantic.ValidationError where that is none.

        The method of clustering is no key of a space and stands in the task alone. A file of weights is that of the
        space's own extractor: another has its published ones.
        """
        plain = self.model_dump(exclude={"candidates"})
        for path, value in changes:
            section, _, name = path.partition(".")
            if path != METHOD:
                plain[section][name] = value
        if plain["features"]["extractor"] != self.features.extractor:
            plain["features"]["weights"] = None
        return SearchSpace.model_validate(plain)

    def settled(self) -> dict[str, Any]:
        """What a study must keep when it is resumed: all but what changes no result (resources, checkpoints, how much
        is computed at once, whether the kept model is measured, and the name of a preset whose values are kept) and the
        place of the images, whose content has a digest of its own."""
        plain = self.model_dump(mode="json")
        del plain["resources"], plain["checkpoints"], plain["images"]["source"], plain["features"]["batch_size"]
        # What the lower end and k-means find says itself how it was found.
        del plain["lower_bound"], plain["finals"]["evaluate"]
        if METHOD not in self.candidates.also:
            del plain["kmeans"]
        for key in ("preset", "head_group", "memory_budget_gib", "compile"):
            del plain["clustering"][key]
        del plain["training"]["microbatch"], plain["training"]["compile"]
        del plain["sampling"]["batch_size"], plain["sampling"]["compile"]
        return plain

    @classmethod
    def from_settled(cls, settled: dict[str, Any]) -> "SearchSpace":
        """The space of a study, from what `settled` kept: what it did not keep has the defaults."""
        return cls.model_validate(settled)

    @classmethod
    def completed(cls, settled: dict[str, Any]) -> dict[str, Any]:
        """What an earlier version of `settled` kept, with the keys that have come since at their defaults."""
        return cls.from_settled(settled).settled()


def read_space(path: Path | str, *, images: str | None = None) -> SearchSpace:
    """Read a search space. `images` replaces images.source. Raises ConfigurationError with file and line."""
    space = read_config(SearchSpace, path, {"images.source": images} if images is not None else None)
    if space.images.source is None:
        raise ConfigurationError(
            f"{path}: images.source is empty",
            mend="name your images, a folder or an archive: --images PATH",
        )
    return space
