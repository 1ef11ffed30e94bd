"""Which measures there are, what each needs of the images, and its values from what was gathered.

A measure is asked for by a word and named after what it is. `fid`, `kid`, `fid_inf`, `ufid` and `is` mean Inception-v3
with TensorFlow's weights, `fdd` means DINOv2, and nothing else bears those names; `fd`, `kd`, `fd_inf` and `ufd` are
the same measures in the features of whatever detector was chosen, and carry its name.

Shapes: n generated images of a set, N reference images, D feature width, R kept rows.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cedm_ray.errors import ConfigurationError
from cedm_ray.evaluation.gathering import MAX_ROWS, PROBABILITIES, Keep, Network
from cedm_ray.features.extractors import distance_name, extractor_name
from cedm_ray.metrics.measurement import Measurement

_SUMS, _BLOCKS, _ROWS, _NOTHING = Keep(statistics=True), Keep(statistics=True, blocks=True), Keep(rows=MAX_ROWS), Keep()

MAX_PROBABILITIES = 50_000
"""Images whose class probabilities are kept for the inception score, which grows with their number: all of a published
set, some 200 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure.

    word: what it is asked for by. kind: what is computed. network: the one that it is bound to; `detector` means the
    chosen one, `extractor` the network that the study's images were clustered by. keep, of_reference: what it needs of
    the generated and of the reference images. better: which values are. text: what it is, in a line.
    """

    word: str
    kind: Literal["frechet", "kernel", "manifold", "inception", "infinity", "unconditional", "auroc", "copies", "msp"]
    network: Literal["inception", "dinov2", "detector", "extractor", "probabilities"]
    keep: Keep
    of_reference: Keep
    text: str

    @property
    def needs_reference_images(self) -> bool:
        """Whether mu and sigma of the reference are not enough."""
        return self.kind in ("kernel", "manifold", "auroc", "copies")


def _measure(word: str, kind: str, network: str, keep: Keep, of_reference: Keep, text: str) -> Measure:
    return Measure(word=word, kind=kind, network=network, keep=keep, of_reference=of_reference, text=text)


MEASURES = {
    measure.word: measure
    for measure in (
        _measure("fd", "frechet", "detector", _SUMS, _SUMS, "Fréchet distance, named after the detector"),
        _measure("fid", "frechet", "inception", _SUMS, _SUMS, "Fréchet distance of Inception-v3"),
        _measure("fdd", "frechet", "dinov2", _SUMS, _SUMS, "Fréchet distance of DINOv2 ViT-L/14"),
        _measure("kd", "kernel", "detector", _ROWS, _ROWS, "kernel distance, named after the detector"),
        _measure("kid", "kernel", "inception", _ROWS, _ROWS, "kernel distance of Inception-v3"),
        _measure("prdc", "manifold", "detector", _ROWS, _ROWS, "precision, recall, density, coverage"),
        _measure("is", "inception", "probabilities", Keep(rows=MAX_PROBABILITIES), _NOTHING, "inception score"),
        _measure("fd_inf", "infinity", "detector", _BLOCKS, _SUMS, "fd extrapolated to infinitely many images"),
        _measure("fid_inf", "infinity", "inception", _BLOCKS, _SUMS, "fid likewise"),
        _measure("ufd", "unconditional", "detector", _SUMS, _NOTHING, "fd to the unconditional model's images"),
        _measure("ufid", "unconditional", "inception", _SUMS, _NOTHING, "fid likewise"),
        _measure("auroc", "auroc", "extractor", _ROWS, _NOTHING, "how far from the training images, beside --test"),
        _measure(
            "memorization",
            "copies",
            "extractor",
            _ROWS,
            _NOTHING,
            "share of copies, and similarity to the nearest",
        ),
        _measure("msp", "msp", "extractor", _ROWS, _NOTHING, "confidence of the clustering head"),
    )
}


def choose(words: Sequence[str], *, detector: str, is_given: bool) -> tuple[Measure, ...]:
    """The measures that `words` ask for, in their order, each once.

    detector: the chosen one. is_given: whether the user named it, so that a measure bound to another network is a
    contradiction. Raises ConfigurationError for an unknown word and for a contradiction.
    """
    chosen = []
    for word in dict.fromkeys(words):
        if word not in MEASURES:
            near = difflib.get_close_matches(word, MEASURES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"unknown metric {word!r}{hint}", mend="metrics are: " + ", ".join(MEASURES))
        measure = MEASURES[word]
        bound = "inception" if measure.network == "probabilities" else measure.network
        if is_given and bound in ("inception", "dinov2") and detector != bound:
            same = {"frechet": "fd", "kernel": "kd", "infinity": "fd_inf", "unconditional": "ufd"}.get(measure.kind)
            raise ConfigurationError(
                f"{word} is a measure of {bound}'s features, and the detector is {detector}",
                mend=f"ask for {same}, the same measure of {detector}'s"
                if same
                else f"leave {word} or --detector away",
            )
        chosen.append(measure)
    if not chosen:
        raise ConfigurationError("no metric was asked for", mend="metrics are: " + ", ".join(MEASURES))
    return tuple(chosen)


def network_of(measure: Measure, *, detector: str, extractor: str, weights: dict[str, str]) -> Network:
    """The network of a measure. weights: files of networks by their word."""
    if measure.network == "probabilities":
        return Network(spec=PROBABILITIES, weights=weights.get("inception"))
    spec = {"detector": detector, "extractor": extractor}.get(measure.network, measure.network)
    return Network(spec=spec, weights=weights.get(spec))


def names(measure: Measure, network: Network, *, with_test: bool = False) -> tuple[str, ...]:
    """What the values of a measure are called; they say the network where the name does not.

    with_test: whether there are test images for memorization to be held against.
    """
    weights = None if network.weights is None else Path(network.weights)
    name, distance = extractor_name(network.spec, weights), distance_name(network.spec, weights)
    if measure.kind == "manifold":
        return tuple(f"{what}[{name}]" for what in ("precision", "recall", "density", "coverage"))
    if measure.kind == "copies":
        test = (f"memorized test[{name}]",) if with_test else ()
        return (f"memorized[{name}]", f"similarity[{name}]", *test)
    if measure.kind == "inception":
        # As FID, without a network in its name with the published weights alone.
        own = extractor_name("inception", weights)
        score = "IS" if own == "inception" else f"IS[{own}]"
        return (score, f"{score} std over splits")
    return (
        {
            "frechet": distance,
            "kernel": "KID" if name == "inception" else f"KD[{name}]",
            "infinity": f"{distance}_inf",
            "unconditional": f"u{distance}",
            "auroc": f"AUROC[{name}]",
            "msp": f"MSP[{name}]",
        }[measure.kind],
    )


def free_of_count(name: str) -> bool:
    """Whether a value of this name estimates the same at any number of images: kernel distances, which are unbiased,
    and what is extrapolated to infinitely many images."""
    return name == "KID" or name.startswith("KD[") or name.endswith("_inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One measurement, and what stands beside it.

    network: its name. errors: standard errors of the values where the measure knows them, else None. images: how many
    images of a set the values were computed from.
    """

    measurement: Measurement
    network: str
    errors: tuple[float, ...] | None
    images: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        errors = None if self.errors is None else list(self.errors)
        return self.measurement.to_json() | {"network": self.network, "errors": errors, "images": self.images}


def read_measurement(told: Mapping[str, Any]) -> Measurement:
    """The measurement of a score's plain values. Raises ValueError for anything else."""
    return Measurement.from_json({name: told[name] for name in told if name not in ("network", "errors", "images")})
