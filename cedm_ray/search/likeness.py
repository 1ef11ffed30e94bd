"""A search like an earlier one: its space, its bound as a place to start from, its curve as an order, its records.

A new data set of the same kind fills about as many clusters, and about the same C are good for it. So the climb starts
at a quarter of the old C_max and the candidates in the order of the old curve, which makes the search shorter and
changes nothing of how it decides. Both are settled with the new study, which is resumed without looking at the old one.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cedm_ray import durable
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.data.sources import source_fingerprint
from cedm_ray.errors import ConfigurationError, InputDataError, IntegrityError
from cedm_ray.search.outcome import study_result
from cedm_ray.search.results import Notice, Show, StudyResult, read_trial_name
from cedm_ray.search.settings import EXTRACTOR, KMEANS, METHOD
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

SHARE_OF_OLD_BOUND = 4
"""The climb starts at the old C_max over this."""


def like_space(old: Study, new: Study, given: SearchSpace | None, images: str | None) -> SearchSpace:
    """The space of a search like `old`.

    given: a space that takes the place of the old one, such as one with other resources; None = the old one, with the
    defaults for what a study does not keep. images: the new source; None = that of `given`. Where all that the old
    study fitted will be taken over, its climb is too, since it costs nothing. A study that has begun keeps what it was
    begun with. Raises ConfigurationError where the old study has no bound yet, or no images are named.
    """
    base = given or SearchSpace.from_settled((new if new.exists else old).settled())
    if images is not None:
        base = base.model_copy(update={"images": base.images.model_copy(update={"source": images})})
    if base.images.source is None:
        raise ConfigurationError("no images are named", mend="name the new images: --images PATH")
    if new.exists:
        begun = SearchSpace.from_settled(new.settled())
        return _started(base, begun.bound.c_start, begun.candidates.best_first)
    old_space = SearchSpace.from_settled(old.settled())
    result = None
    if (old.images / durable.MANIFEST).exists():
        result = study_result(old, old_space, open_image_set(old.images))
    if result is None or result.bound.c_max is None:
        raise ConfigurationError(
            f"{old.path} has no C_max to start from", mend="finish its search first, or begin one without --like"
        )
    c_start = max(2, result.bound.c_max // SHARE_OF_OLD_BOUND)
    if _fits_alike(old_space, base) and _same_source(old, base):
        c_start = old_space.bound.c_start
    return _started(base, c_start, best_first(result))


def best_first(result: StudyResult) -> tuple[int, ...] | None:
    """The C that a search measured, the best first: those that came to a later rung, then those with the lower
    distance at it, of a finalist with several seeds their mean there, of several proposals that of the best. None where
    it measured none."""
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for trial in result.trials:
        if trial.num_clusters is not None and trial.final is not None:
            candidate = trial.num_clusters, read_trial_name(trial.trial).proposal
            found.setdefault(candidate, []).append((trial.final.rung, trial.final.distance))
    order = []
    for (num_clusters, _), measured in found.items():
        last = max(rung for rung, _ in measured)
        order.append((-last, fmean(distance for rung, distance in measured if rung == last), num_clusters))
    return tuple(dict.fromkeys(num_clusters for *_, num_clusters in sorted(order))) or None


def reuse_records(old: Study, new: Study, space: SearchSpace, images: ImageSet, show: Show) -> None:
    """Take over what `old` computed of the same images: features, neighbors, the detector's statistics, fits.

    images: of the new study. Features and statistics are those of the images alone, neighbors and fits also of how the
    space clusters. What the new study has already stays; what is damaged is left out and told. Raises StorageError.
    """
    if not (old.images / durable.MANIFEST).exists():
        return
    if durable.read_record(old.images / durable.MANIFEST)["digest"] != images.digest:
        show(Notice(text=f"the images are not those of {old.path}: everything is computed anew"))
        return
    taken = []
    for folder in old.features_kept():
        # The record that makes them count comes last.
        names = sorted(path.name for path in folder.iterdir() if not durable.is_temporary(path))
        names.sort(key=lambda name: name == "features.json")
        if _copied(folder, new.features(folder.name), names):
            taken.append("features")
    for path in sorted(old.references.glob("*.safetensors")):
        known = _read(path, show)
        if known and known[1].get("images") == images.digest and _copied(path.parent, new.references, [path.name]):
            taken.append("reference statistics")
    old_space = SearchSpace.from_settled(old.settled())
    if _fits_alike(old_space, space):
        known = old.fits()
        if old_space.kmeans != space.kmeans:
            known = {name: fit for name, fit in known.items() if fit.changes.get(METHOD) != KMEANS}
        for extractor in dict.fromkeys([None, *(fit.changes.get(EXTRACTOR) for fit in known.values())]):
            place = new.neighbors_in(extractor)
            if not place.exists() and (found := _read(old.neighbors_in(extractor), show)) is not None:
                durable.write_tensors(place, *found)
                taken.append("neighbors")
        fits = {name: fit for name, fit in known.items() if name not in new.fits()}
        whole = {name: found for name in fits if (found := _read(old.fit(name), show)) is not None}
        for name, (tensors, provenance) in whole.items():
            new.write_fit(fits[name], name, tensors, provenance)
        taken += [f"{len(whole)} fits"] if whole else []
    if taken:
        show(Notice(text=f"the images are those of {old.path}; taken over: {', '.join(dict.fromkeys(taken))}"))


def _started(space: SearchSpace, c_start: int, order: tuple[int, ...] | None) -> SearchSpace:
    return space.model_copy(
        update={
            "bound": space.bound.model_copy(update={"c_start": c_start}),
            "candidates": space.candidates.model_copy(update={"best_first": order}),
        }
    )


def _fits_alike(old: SearchSpace, new: SearchSpace) -> bool:
    """Whether a fit of one space is a fit of the other, given the same images."""
    before, now = old.settled(), new.settled()
    return all(before[key] == now[key] for key in ("seed", "features", "clustering"))


def _same_source(old: Study, space: SearchSpace) -> bool:
    known = durable.read_record(old.images / durable.MANIFEST)["fingerprint"]
    try:
        return known is not None and known == source_fingerprint(space.images)
    except InputDataError:
        # Whoever reads the images says so.
        return False


def _read(path: Path, show: Show) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Tensors and what is said of them; None where they are not there, or damaged, which is told."""
    try:
        return durable.read_tensors(path)
    except FileNotFoundError:
        return None
    except IntegrityError as error:
        show(Notice(text=f"not taken over: {error}"))
        return None


def _copied(source: Path, target: Path, names: list[str]) -> bool:
    """Copy those files that are not there yet, in their order; whether any was."""
    missing = [name for name in names if not (target / name).exists()]
    for name in missing:
        durable.write_bytes(target / name, (source / name).read_bytes())
    return bool(missing)
