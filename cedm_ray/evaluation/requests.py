"""What is asked of an evaluation, and the plan that it becomes: everything settled and checked, nothing computed.

A request leaves most things open; the study of the model, else that of the reference, closes them.
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cedm_ray.config import digest
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.data.stored_images import StoredImages, open_stored
from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.evaluation.gathering import (
    BATCH,
    BLOCKS,
    PROBABILITIES,
    FileImages,
    Keep,
    ModelImages,
    Network,
    Subject,
    Work,
    blocks_of,
    open_network,
)
from cedm_ray.evaluation.references import Moments, Reference, files_reference, is_moments, study_reference
from cedm_ray.evaluation.scores import Measure, choose, network_of
from cedm_ray.features.extractors import Extractor, absolute_spec
from cedm_ray.metrics.extrapolation import union_sizes
from cedm_ray.metrics.uncertainty import SeedSets
from cedm_ray.search.model import TrainedModel, find_model
from cedm_ray.search.results import UNCONDITIONAL, Show
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

SETS = 3
"""Disjoint sets of seeds that a model is measured on unless told otherwise, as the paper does."""

DEFAULT_DETECTOR = "inception"
_SCHEMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for.

    source: a study, or a folder, zip or npz of images. reference: likewise, or an npz of moments; None = the training
    images of the study. metrics: words of `scores.MEASURES`; empty = the Fréchet distance of the detector. trial: of
    the study, None = the best. num: images of each set; None = evaluation.final_samples of the study. sets: disjoint
    sets of seeds, None = 3; files are one set. detector: None = the study's, or inception. weights: (word, file) of
    networks; the word None means the detector. versus: a trial of the same study whose distance is compared. test:
    images that AUROC compares with.
    """

    source: str
    reference: str | None = None
    metrics: tuple[str, ...] = ()
    trial: str | None = None
    num: int | None = None
    sets: int | None = None
    detector: str | None = None
    weights: tuple[tuple[str | None, str], ...] = ()
    versus: str | None = None
    test: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The study whose settings hold where a request leaves them open, and on whose images `pixels` is fitted: that of
    the model, else that of the reference."""

    study: Study
    space: SearchSpace
    images: ImageSet

    @property
    def folder(self) -> str:
        """Of the image set."""
        return str(self.study.images.absolute())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request with everything settled.

    networks: that of each measure, by its word. model: what is measured, None where it is files. name: of either.
    reference: what it is compared with, None where no measure compares. image_size: side of its images. num: images
    of a set. sets: how many. versus: the model it is compared with. unconditional: where a measure compares with it.
    test: what AUROC compares with.
    """

    request: Request
    home: Home | None
    measures: tuple[Measure, ...]
    networks: dict[str, Network]
    reference: Reference | Moments | None
    model: TrainedModel | None
    name: str
    image_size: int
    num: int
    sets: int
    versus: TrainedModel | None
    unconditional: TrainedModel | None
    test: StoredImages | None

    @property
    def first_seed(self) -> int:
        return self.home.space.evaluation.first_seed

    @property
    def seeds(self) -> tuple[range, ...] | None:
        """The seeds of each set; None for files."""
        if self.model is None:
            return None
        return SeedSets(first_seed=self.first_seed, num_samples=self.num, num_sets=self.sets).ranges

    @property
    def keeps(self) -> dict[Network, Keep]:
        """What is kept of the generated images, by network."""
        found: dict[Network, Keep] = {}
        for measure in self.measures:
            network, keep = self.networks[measure.word], measure.keep
            if self.versus is not None and measure.kind == "frechet":
                keep = keep | Keep(blocks=True)
            found[network] = found.get(network, Keep()) | keep
        return found

    @property
    def subject(self) -> Subject:
        """What is measured, as a worker opens it."""
        if self.model is None:
            return FileImages(path=_absolute(self.request.source), batch_size=BATCH)
        return self.images_of(self.model, self.request.trial)

    def images_of(self, model: TrainedModel, trial: str | None) -> ModelImages:
        """A model's images of the plan's seeds. trial: what it was found by, None = the best."""
        return ModelImages(
            study=str(self.home.study.path.absolute()),
            trial=trial,
            images_seen=model.images_seen,
            first_seed=self.first_seed,
            batch_size=model.meaning.sampling.batch_size,
        )

    def work(self, task: str, subject: Subject, keeps: dict[Network, Keep], *, num: int, sets: int = 1) -> Work:
        """A work with the plan's networks."""
        return Work(
            task=task,
            subject=subject,
            num_sets=sets,
            num_images=num,
            networks=tuple(keeps),
            keeps=tuple(keeps.values()),
            fitted_on=None if self.home is None else self.home.folder,
            image_size=self.image_size,
            pixel_components=1 if self.home is None else self.home.space.features.pixel_components,
        )

    def open(self, network: Network, device: str) -> Extractor:
        """Open a network, for its key and so that missing weights are found before any work begins."""
        return open_network(network, self.work("", self.subject, {}, num=2), device)

    def key(self, opened: dict[Network, Extractor]) -> str:
        """The digest of all that the result depends on."""
        return digest(
            {
                "schema": _SCHEMA,
                "models": [model_digest(model) for model in (self.model, self.versus, self.unconditional)],
                "seeds": [self.first_seed if self.home else 0, self.num, self.sets],
                "reference": None if self.reference is None else self.reference.digest,
                "test": None if self.test is None else self.test.fingerprint,
                "versus": self.request.versus,
                "measures": [[measure.word, opened[self.networks[measure.word]].key] for measure in self.measures],
            }
        )


def settle(request: Request, *, cache: Path, show: Show) -> Plan:
    """Open everything but the networks, and refuse what cannot be done.

    cache: the user's folder for what is computed of references outside a study. Raises ConfigurationError for a request
    that contradicts itself, InputDataError for images that cannot be used.
    """
    source = Study(Path(request.source))
    compared = Study(Path(request.reference)) if request.reference is not None else source
    model = find_model(source, request.trial, "cpu", show) if source.exists else None
    fit = None if model is None else model.meaning.fit
    home = _home(source, fit) if source.exists else _home(compared) if compared.exists else None
    detector = request.detector or (home.space.evaluation.detector if home else DEFAULT_DETECTOR)
    measures = choose(request.metrics or ("fd",), detector=detector, is_given=request.detector is not None)
    extractor = home.space.features.extractor if home else detector
    networks = _networks(request, measures, home, detector=detector, extractor=extractor)
    kinds = {measure.kind for measure in measures}
    _check_model(request, kinds, model)
    compares = request.reference is not None or source.exists or kinds != {"inception"}
    reference = _reference(request, compared, home, cache) if compares else None
    if "auroc" in kinds and request.test is None:
        what = "auroc compares with images that the model was not trained on"
        raise ConfigurationError(what, mend="name them: --test IMAGES")
    if request.test is not None and not kinds & {"auroc", "copies"}:
        raise ConfigurationError("--test is for auroc and memorization, and neither was asked for")
    test = open_stored(request.test) if request.test is not None else None
    images = open_stored(request.source) if model is None else None
    plan = Plan(
        request=request,
        home=home,
        measures=measures,
        networks=networks,
        reference=reference,
        model=model,
        name=images.name if images is not None else model.meaning.trial,
        image_size=images.size if images is not None else model.meaning.image_size,
        num=len(images) if images is not None else request.num or home.space.evaluation.final_samples,
        sets=1 if images is not None else request.sets or SETS,
        versus=None if request.versus is None else find_model(source, request.versus, "cpu", show),
        unconditional=find_model(source, UNCONDITIONAL, "cpu", show) if "unconditional" in kinds else None,
        test=test,
    )
    _check_images(plan)
    return plan


def _networks(
    request: Request, measures: tuple[Measure, ...], home: Home | None, *, detector: str, extractor: str
) -> dict[str, Network]:
    """The network of every measure, by its word, with the weights that were named or that the study's space names."""
    chosen = {"detector": absolute_spec(detector), "extractor": absolute_spec(extractor)}
    # By role and not by word alone: the same word may be clustered by with one file and measured with another.
    of_extractor: dict[str, str] = {}
    of_detector: dict[str, str] = {}
    if home is not None:
        features, evaluation = home.space.features, home.space.evaluation
        for own, spec, file in (
            (of_extractor, features.extractor, features.weights),
            (of_detector, evaluation.detector, evaluation.weights),
        ):
            if file is not None:
                own[absolute_spec(spec)] = _absolute(str(file))
    for word, file in request.weights:
        of_detector[absolute_spec(word or detector)] = _absolute(file)
        if word is not None:
            of_extractor[absolute_spec(word)] = _absolute(file)
    networks, used = {}, set()
    for measure in measures:
        by_extractor = measure.network == "extractor"
        network = network_of(measure, **chosen, weights=of_extractor if by_extractor else of_detector)
        networks[measure.word] = network
        spec = "inception" if network.spec == PROBABILITIES else network.spec
        # Under None what a file without a word is for.
        used |= {(spec, spec)} if by_extractor else {(spec, spec), (None, spec)}
    asked = {(word and absolute_spec(word), absolute_spec(word or detector)) for word, _ in request.weights}
    if unused := {spec for _, spec in asked - used}:
        raise ConfigurationError(f"--weights names {', '.join(sorted(unused))}, which no metric asked for uses")
    return networks


def _home(study: Study, fit: str | None = None) -> Home:
    """fit: name of a fit whose settings, the extractor among them, are not the space's."""
    space = SearchSpace.from_settled(study.settled())
    if fit is not None:
        space = space.changed(study.fits()[fit].task.changes)
    return Home(study=study, space=space, images=open_image_set(study.images))


def _reference(request: Request, compared: Study, home: Home | None, cache: Path) -> Reference | Moments:
    fit = {} if home is None else {"fitted_on": home.folder, "pixel_components": home.space.features.pixel_components}
    if compared.exists:
        own = home if home.study == compared else _home(compared)
        return study_reference(compared, own.images, batch_size=own.space.features.batch_size, **fit)
    if request.reference is None:
        raise ConfigurationError(
            f"{request.source} is not a study, so there is nothing to compare its images with",
            mend="name what: --reference IMAGES, or a study; cedm-ray search SPACE --study FOLDER begins one",
        )
    if is_moments(request.reference):
        return Moments.open(request.reference)
    return files_reference(_absolute(request.reference), cache, batch_size=BATCH, **fit)


def _check_model(request: Request, kinds: set[str], model: TrainedModel | None) -> None:
    """Refuse what needs a model of a study, or a conditional one, where there is none."""
    if model is None:
        for option, value in (("--trial", request.trial), ("--num", request.num), ("--sets", request.sets)):
            if value is not None:
                text = f"{option} is for a study's models, and {request.source} is not a study"
                raise ConfigurationError(text, mend=f"leave {option} away: all of these images are one set")
    if "unconditional" in kinds and not (model is not None and model.meaning.is_conditional):
        raise ConfigurationError("ufd and ufid compare a conditional model of a study with its unconditional one")
    if "msp" in kinds and (model is None or model.meaning.num_clusters is None):
        raise ConfigurationError("msp needs the clustering head of a study's model that is conditioned on clusters")
    if request.versus is not None:
        if model is None:
            raise ConfigurationError(f"--versus compares two models of a study, and {request.source} is not a study")
        if "frechet" not in kinds:
            raise ConfigurationError("--versus compares Fréchet distances", mend="add fd to --metrics")


def _check_images(plan: Plan) -> None:
    """Refuse images that are too few or of another size, seeds that there are not, stored features where a network is
    needed, and a reference without images where a measure needs them."""
    in_blocks = plan.versus is not None or any(measure.keep.blocks for measure in plan.measures)
    if in_blocks and plan.num < 2 * BLOCKS[-1]:
        what = f"an extrapolation or an interval needs at least {2 * BLOCKS[-1]} images a set, got {plan.num}"
        raise ConfigurationError(what, mend="raise --num")
    if plan.seeds is not None and plan.seeds[-1].stop > 2**32:
        what = f"{plan.sets} sets of {plan.num:,} images from seed {plan.first_seed} on need seeds of 2^32 and above"
        raise ConfigurationError(what, mend="lower --num or --sets")
    for measure in plan.measures:
        if (spec := plan.networks[measure.word].spec).endswith(".npy"):
            raise ConfigurationError(
                f"{measure.word} puts images through a network, and {spec} holds features of the training images only",
                mend=f"leave {measure.word} away" if measure.network == "extractor" else "name a --detector",
            )
    reference = plan.reference
    if isinstance(reference, Moments):
        for measure in plan.measures:
            if measure.needs_reference_images:
                raise ConfigurationError(
                    f"{measure.word} needs the reference's images, and {reference.name} holds mu and sigma only",
                    mend="give the images themselves, or a study, as --reference",
                )
    for what, size in (
        ("", None) if reference is None else (f"the reference {reference.name}", reference.image_size),
        ("--test", plan.test.size if plan.test is not None else None),
    ):
        if size is not None and size != plan.image_size:
            raise InputDataError(
                f"the images of {plan.name} have a side of {plan.image_size} pixels, those of {what} of {size}",
                mend="bring them to one size first: a detector sees the difference in sharpness",
            )


def check_opened(plan: Plan, opened: Mapping[Network, Extractor]) -> None:
    """Refuse what only the opened networks can tell: too few images for a line over their number."""
    for measure in plan.measures:
        dim = opened[plan.networks[measure.word]].dim
        if measure.kind != "infinity" or _makes_a_line(plan.num, dim):
            continue
        least = next(num for num in itertools.count(plan.num) if _makes_a_line(num, dim))
        raise ConfigurationError(
            f"{plan.num:,} images a set are too few for {measure.word}, a line through numbers of images of at least "
            f"twice the {dim:,} features",
            mend=f"raise --num to {least}" if plan.model is not None else f"give at least {least:,} images",
        )


def _makes_a_line(num: int, dim: int) -> bool:
    blocks = blocks_of(num)
    return len(union_sizes(blocks, num // blocks, 2 * dim)) >= 2


def model_digest(model: TrainedModel | None) -> str | None:
    """SHA-256 (hex) over what a model samples from."""
    if model is None:
        return None
    hasher = hashlib.sha256(digest(model.meaning.to_json()).encode())
    for name, tensor in sorted(model.denoiser.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(tensor.cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
