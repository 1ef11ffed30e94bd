"""The paper's pictures of paired noise for the user's own study: where only the condition differs, the seeds are equal.

Every function samples what it shows and returns a Pillow image. n images, R rows, K columns, S image side, C clusters.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cedm_ray.data.image_set import open_image_set
from cedm_ray.errors import ConfigurationError
from cedm_ray.report.figures import amount
from cedm_ray.report.grids import labelled_grid
from cedm_ray.search.confidence import HeadConfidence
from cedm_ray.search.matching import match_clusters
from cedm_ray.search.model import Meaning, TrainedModel
from cedm_ray.search.results import Progress, Show, read_trial_name
from cedm_ray.search.showcase import spread_over_sizes
from cedm_ray.search.study import Study
from cedm_ray.search.trial import load_assignment


def clusters_picture(
    model: TrainedModel, clusters: Sequence[int] | None, *, rows: int, columns: int, first_seed: int, show: Show
) -> Image.Image:
    """One cluster a row, one seed a column. clusters: original ids, None = `rows` of them spread over the sizes.

    Raises ConfigurationError for clusters that the model does not know.
    """
    meaning = model.meaning
    if not meaning.class_ids:
        raise ConfigurationError(f"{meaning.trial} was not trained on clusters", mend="name another: --trial")
    if clusters is None:
        classes = spread_over_sizes(meaning.counts, rows).tolist()
    else:
        classes = meaning.classes_of(clusters)
    seeds = range(first_seed, first_seed + columns)
    images = _product(model, classes, seeds, show)
    total = sum(meaning.counts)
    names = [f"cluster {meaning.class_ids[k]}\n{meaning.counts[k] / total:.1%}" for k in classes]
    return labelled_grid(images, rows=names, columns=[f"seed {seed}" for seed in seeds])


def sweep_picture(models: Sequence[TrainedModel], *, rows: int, first_seed: int, show: Show) -> Image.Image:
    """One seed a row, one C a column, the unconditional model first and one on features last; conditions from each
    model's q(c) (Figs. 9, 11 and 12). A model that has seen fewer images than others says so."""
    models = sorted(models, key=lambda model: (model.meaning.feature_dim > 0, model.meaning.num_clusters or 0))
    seeds = range(first_seed, first_seed + rows)
    images = np.stack([_sampled(model, list(seeds), None, show) for model in models], axis=1)
    names = [_name(model.meaning) + _training("\n{}", model, models) for model in models]
    return labelled_grid(images, rows=[f"seed {seed}" for seed in seeds], columns=names)


def classes_picture(
    model: TrainedModel,
    study: Study,
    other: TrainedModel,
    others_study: Study,
    *,
    rows: int,
    columns: int,
    first_seed: int,
    show: Show,
) -> Image.Image:
    """Clusters beside the classes that they stand for, under the same noise (Figs. 7 and 10).

    other: a model that is conditioned on classes; the class of every image is what it was trained on. Clusters and
    classes are matched by the Hungarian algorithm over the training images, and the first `rows` classes are shown.
    Where one model has seen fewer images than the other, both say how many.
    Raises ConfigurationError where a model has no clusters, or the two were trained on different images.
    """
    for one in (model, other):
        if one.meaning.num_clusters is None:
            raise ConfigurationError(f"{one.meaning.trial} was not trained on clusters: there is nothing to match")
    if open_image_set(study.images).digest != open_image_set(others_study.images).digest:
        raise ConfigurationError(f"{study.path} and {others_study.path} are studies of different images")
    clusters = load_assignment(study, model.meaning.num_clusters, model.meaning.fit).labels
    labels = load_assignment(others_study, other.meaning.num_clusters, other.meaning.fit).labels
    matches = match_clusters(clusters, labels)[:rows]
    seeds = range(first_seed, first_seed + columns)
    ours = [model.meaning.class_ids.index(match.cluster) for match in matches]
    theirs = [other.meaning.class_ids.index(match.label) for match in matches]
    images = np.concatenate(
        [_product(model, ours, seeds, show), _product(other, theirs, seeds, show)],
        axis=1,
    )
    both = (model, other)
    names = [f"class {match.label}\ncluster {match.cluster}, {match.share:.0%}" for match in matches]
    groups = [
        (f"clusters, {_name(model.meaning)}" + _training(", {} images", model, both), columns),
        (f"{len(other.meaning.class_ids)} classes, the same noise" + _training(", {} images", other, both), columns),
    ]
    return labelled_grid(images, rows=names, columns=[f"seed {seed}" for seed in seeds] * 2, groups=groups)


def confidence_picture(
    model: TrainedModel,
    unconditional: TrainedModel,
    confidence: HeadConfidence,
    *,
    candidates: int,
    rows: int,
    columns: int,
    first_seed: int,
    show: Show,
) -> Image.Image:
    """The most and the least confident of `candidates` images, and the unconditional model's from the same noise (Figs.
    8 and 14).

    confidence: the head of the model's own clustering, which judges both models. Shows `rows` rows of each kind, and
    how many images the models have seen where one has seen fewer.
    Raises ConfigurationError for fewer candidates than two such blocks hold.
    """
    shown = rows * columns
    if candidates < 2 * shown:
        raise ConfigurationError(f"--candidates must be at least {2 * shown} for two blocks of {shown}")
    seeds = list(range(first_seed, first_seed + candidates))
    images = _sampled(model, seeds, None, show)
    values = confidence(images)
    order = np.argsort(-values, kind="stable")
    blocks, names, both = [], [], (model, unconditional)
    for kind, chosen in (("most", order[:shown]), ("least", order[-shown:])):
        noise = _sampled(unconditional, [seeds[index] for index in chosen], None, show)
        for title, block, block_values in (
            (
                f"{kind} confident, {_name(model.meaning)}" + _training(", {} images", model, both),
                images[chosen],
                values[chosen],
            ),
            ("same noise, unconditional" + _training(", {} images", unconditional, both), noise, confidence(noise)),
        ):
            blocks.append(block.reshape(rows, columns, *block.shape[1:]))
            for index, row in enumerate(block_values.reshape(rows, columns)):
                span = f"{row.min():.2f} to {row.max():.2f}"
                names.append(f"{title}\n{span}" if index == 0 else span)
    return labelled_grid(np.concatenate(blocks), rows=names, columns=[""] * columns, bands=[rows] * 4)


def _name(meaning: Meaning) -> str:
    if meaning.feature_dim:
        return "features"
    if meaning.num_clusters is None:
        return "none"
    proposal = read_trial_name(meaning.trial).proposal
    return f"C = {meaning.num_clusters}" + (f", p{proposal}" if proposal else "")


def _training(text: str, model: TrainedModel, shown: Sequence[TrainedModel]) -> str:
    """The text with the images that the model has seen, where the models shown differ in that; else nothing."""
    alike = len({other.images_seen for other in shown}) == 1
    return "" if alike else text.format(amount(model.images_seen / 1000))


def _product(model: TrainedModel, classes: Sequence[int], seeds: Sequence[int], show: Show) -> np.ndarray:
    """Every class under every seed, uint8 [R, K, 3, S, S]."""
    images = _sampled(model, list(seeds) * len(classes), np.repeat(classes, len(seeds)).tolist(), show)
    return images.reshape(len(classes), len(seeds), *images.shape[1:])


def _sampled(model: TrainedModel, seeds: Sequence[int], classes: Sequence[int] | None, show: Show) -> np.ndarray:
    """Images of the seeds, uint8 [n, 3, S, S]; classes None = drawn from q(c)."""
    parts, done = [], 0
    for batch in model.sample(seeds, classes=classes):
        parts.append(batch)
        done += len(batch)
        show(Progress(task=model.meaning.trial, done=done, total=len(seeds), unit="images"))
    show(Progress(task=model.meaning.trial, done=done, total=len(seeds), unit="images", ended=True))
    return np.concatenate(parts)
