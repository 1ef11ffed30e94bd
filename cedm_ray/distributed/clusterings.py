"""run_clusterings: the groups that were asked for, by TEMI on the cluster or by one of its rivals.

A clustering that the study has is read and not made again.
"""

import re
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.assignment_file import from_labels, read_assignment
from cedm_ray.clustering.kmeans import KMeansProgress
from cedm_ray.clustering.zero_shot import PROMPTS, class_prompts, prompt_ensemble, zero_shot
from cedm_ray.data.image_set import ImageSet
from cedm_ray.distributed.run import run_features, run_images, run_other_features, run_study
from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.features.extractors import open_text_encoder
from cedm_ray.features.store import open_features
from cedm_ray.search.clusterings import Clustering, fit_summary, fitted, keep_clustering, read_labels, summarize
from cedm_ray.search.goals import FitTask, Goal
from cedm_ray.search.results import Progress, Show, shown
from cedm_ray.search.rivals import CLIP, CLIP_MODEL, KMEANS, LABELS, TEMI, Wanted, kmeans_of, short_digest
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study


def run_clusterings(
    study: Study, space: SearchSpace, wanted: Wanted, *, address: str | None, show: Show
) -> tuple[ImageSet, list[Clustering], dict[str, str]]:
    """Make what is wanted; each is kept in the study and shown as soon as it is done.

    Returns the images, the clusterings, and the error text of every TEMI fit that failed by its name. Raises the errors
    of `errors.py`, those of labels and sizes before anything is computed.
    """
    if wanted.method == TEMI:
        goal = Goal(kind="fits", sizes=wanted.sizes)
        images = run_study(study, space, goal, address=address, show=show, labels=wanted.labels)
        return images, *_fits(study, space, images, wanted)
    images = run_images(study, space, show=show)
    labels = read_labels(wanted.labels, images)
    if max(wanted.sizes, default=0) > len(images):
        raise ConfigurationError(f"C must not exceed the {len(images):,} images, got {max(wanted.sizes)}")
    if wanted.method == KMEANS:
        names = {f"{KMEANS}-c{num_clusters:05d}": num_clusters for num_clusters in wanted.sizes}
        key = None
        if not all(study.clustering(name).exists() for name in names):
            _, key = run_features(study, space, address=address, show=show)
        makers = {name: partial(_kmeans, study, space, key, c, show) for name, c in names.items()}
    elif wanted.method == CLIP:
        _, key = run_other_features(study, space, CLIP_MODEL, wanted.clip_weights, address=address, show=show)
        name = f"{CLIP}-{short_digest(np.zeros(0), key, *wanted.classes)}-c{len(wanted.classes):05d}"
        makers = {name: partial(_pseudo_labels, study, images, key, wanted)}
    else:
        assignment = _given(images, wanted)
        digest = short_digest(assignment.labels)
        makers = {f"{_word(assignment.method)}-{digest}-c{assignment.num_clusters:05d}": lambda: assignment}
    return images, [_clustering(study, images, name, make, labels, show) for name, make in makers.items()], {}


def _clustering(
    study: Study,
    images: ImageSet,
    name: str,
    make: Callable[[], ClusterAssignment],
    labels: np.ndarray | None,
    show: Show,
) -> Clustering:
    """A rival's clustering, read where it was kept, else made and kept."""
    path, seconds = study.clustering(name), None
    if path.exists():
        assignment = read_assignment(path, num_images=len(images), names=images.names)
    else:
        started = time.monotonic()
        assignment = make()
        seconds = round(time.monotonic() - started, 3)
    clustering = Clustering(summary=summarize(name, assignment, labels, seconds=seconds), assignment=assignment)
    keep_clustering(study, clustering, images)
    show(clustering.summary)
    return clustering


def _fits(
    study: Study, space: SearchSpace, images: ImageSet, wanted: Wanted
) -> tuple[list[Clustering], dict[str, str]]:
    """The TEMI clusterings that were asked for, and the error text of the fits that failed."""
    labels, records, failures = read_labels(wanted.labels, images), study.fits(), study.failures()
    tasks = [FitTask(num_clusters=c, repeat=r) for c in wanted.sizes for r in range(space.bound.repeats)]
    found = []
    for task in (task for task in tasks if task.name in records):
        summary = fit_summary(study, space, task, records[task.name].seconds, labels)
        found.append(Clustering(summary=summary, assignment=fitted(study, task)))
    return found, {task.name: failures[task.name] for task in tasks if task.name in failures}


def _word(method: str) -> str:
    """A method as part of a file's name: what an imported file calls itself may hold anything."""
    return re.sub(r"[^a-z0-9]+", "_", method.lower())[:32] or "imported"


def _kmeans(study: Study, space: SearchSpace, key: str, num_clusters: int, show: Show) -> ClusterAssignment:
    task = f"k-means {num_clusters}"

    def run(step: KMeansProgress) -> Progress:
        return Progress(task=task, done=step.run, total=step.of, unit="runs", detail=f"inertia {step.inertia:.6g}")

    found = shown(kmeans_of(study, space, key, num_clusters), run, show)
    show(Progress(task=task, done=1, total=1, unit="runs", ended=True))
    return found


def _pseudo_labels(study: Study, images: ImageSet, key: str, wanted: Wanted) -> ClusterAssignment:
    """What CLIP takes each image for, of the classes that were named, by the paper's five prompts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = open_text_encoder(CLIP_MODEL, images, weights=wanted.clip_weights, device=device)
    texts = encoder.embed_texts(class_prompts(wanted.classes))
    classes = prompt_ensemble(texts.reshape(len(wanted.classes), len(PROMPTS), -1))
    about = {"model": CLIP_MODEL, "features": key, "classes": list(wanted.classes), "prompts": list(PROMPTS)}
    return zero_shot(open_features(study.features(key)), classes, provenance=about)


def _given(images: ImageSet, wanted: Wanted) -> ClusterAssignment:
    """The assignment of a file, or the labels as one."""
    if wanted.method != LABELS:
        return read_assignment(wanted.method, num_images=len(images), names=images.names)
    labels = read_labels(wanted.labels, images)
    if labels is None:
        raise InputDataError(
            "--method labels needs labels, and the images came without any",
            mend="name them with --labels FILE or --labels folders",
        )
    return from_labels(labels, provenance={"labels": wanted.labels})
