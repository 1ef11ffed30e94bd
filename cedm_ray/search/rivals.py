"""TEMI's rivals: other ways to group a study's images, with the same result type.

k-means on the features, pseudo-labels by CLIP, the labels themselves, and any assignment out of a file. N images, C
clusters, K classes, D feature width.
"""

import dataclasses
import difflib
import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cedm_ray import durable
from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.kmeans import KMeansProgress, fit_kmeans
from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.features.store import open_features
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

TEMI, KMEANS, CLIP, LABELS = "temi", "kmeans", "clip", "labels"
CLIP_MODEL = "openclip_vitbigg14"
"""The paper's CLIP model (section 4.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which clusterings are asked for.

    method: "temi", "kmeans", "clip", "labels", or a file. sizes: each C, for temi and kmeans alone. classes: names of
    the classes, for clip alone. clip_weights: a file with CLIP's weights, None = downloaded once. labels: as
    `read_labels`; what the method "labels" takes, and what all methods are compared with; None = nothing.
    Raises ConfigurationError for a combination that means nothing.
    """

    method: str
    sizes: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    clip_weights: Path | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        words = (TEMI, KMEANS, CLIP, LABELS)
        if self.method not in words and not re.search(r"[./]", self.method):
            near = difflib.get_close_matches(self.method, words, n=1)
            raise ConfigurationError(
                f"--method must be {', '.join(words)} or a file (*.npz, *.npz:KEY, *.parquet, *.pt), got "
                f"{self.method!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
        sized = self.method in (TEMI, KMEANS)
        if sized != bool(self.sizes):
            what = "needs" if sized else "does not take"
            raise ConfigurationError(
                f"--method {self.method} {what} --num-clusters", mend="see cedm-ray cluster --help"
            )
        if self.sizes and (min(self.sizes) < 2 or len(set(self.sizes)) < len(self.sizes)):
            raise ConfigurationError(f"--num-clusters must list each C once, at least 2, got {list(self.sizes)}")
        if (self.method == CLIP) != bool(self.classes):
            what = "needs --classes with the names of" if self.method == CLIP else "does not take --classes, for"
            raise ConfigurationError(f"--method {self.method} {what} at least two classes")
        if self.clip_weights is not None and self.method != CLIP:
            raise ConfigurationError(f"--method {self.method} does not take --clip-weights")
        if self.method == LABELS and self.labels is None:
            raise ConfigurationError("--method labels needs labels", mend="name them with --labels FILE or folders")

    @classmethod
    def parse(
        cls, method: str, sizes: str | None, *, classes: str | None, clip_weights: str | None, labels: str | None
    ) -> "Wanted":
        """What the command line says. sizes: numbers with commas between them. classes: a text file, a name a line."""
        if sizes is not None and not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", sizes):
            raise ConfigurationError(f"--num-clusters must be numbers with commas between them, got {sizes!r}")
        return cls(
            method=method,
            sizes=tuple(int(size) for size in sizes.split(",")) if sizes else (),
            classes=() if classes is None else read_class_names(Path(classes)),
            clip_weights=None if clip_weights is None else Path(clip_weights),
            labels=labels,
        )


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of a text file (UTF-8), one on each line, in their order. Raises InputDataError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputDataError(f"cannot read {path.absolute()}: {reason}") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputDataError(f"{path.absolute()} must hold at least two names, each once on a line of its own")
    return names


def kmeans_of(
    study: Study, space: SearchSpace, key: str, num_clusters: int
) -> Generator[KMeansProgress, None, ClusterAssignment]:
    """k-means on the features of `key` as they are, which is how the paper's rival was made (method.md 3.6).

    Yields after each of its runs and returns the assignment (as the value of StopIteration). The centers are kept
    beside the clustering, float32 [C, D]. Raises ConfigurationError for more clusters than images.
    """
    features = open_features(study.features(key))
    if num_clusters > len(features):
        raise ConfigurationError(f"C must not exceed the {len(features):,} images, got {num_clusters}")
    fit = yield from fit_kmeans(features, num_clusters, space.kmeans, seed=space.seed)
    about = {"features": key, "extractor": space.features.extractor}
    centers = study.clustering(f"{KMEANS}-c{num_clusters:05d}").with_suffix(".safetensors")
    durable.write_tensors(centers, {"centers": fit.centers}, about)
    provenance = {**fit.assignment.provenance, **about}
    return dataclasses.replace(fit.assignment, provenance=provenance)


def short_digest(array: np.ndarray, *words: str) -> str:
    """Eight hexadecimal digits that tell clusterings of one method apart."""
    hasher = hashlib.sha256(np.ascontiguousarray(array).tobytes())
    for word in words:
        hasher.update(b"\0" + word.encode())
    return hasher.hexdigest()[:8]
