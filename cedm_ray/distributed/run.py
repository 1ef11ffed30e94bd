"""run_study: one command's work on a study, from images to the goal, on a Ray cluster.

Everything is done where it is not on record yet, so the same call resumes whatever an earlier one left.
"""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import ray

from cedm_ray import durable
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.distributed.ahead import import_meanwhile
from cedm_ray.distributed.decoding import cluster_decode
from cedm_ray.distributed.features import prepare_features
from cedm_ray.distributed.head import head_watched
from cedm_ray.distributed.inventory import cluster_nodes, cluster_resources, gpu_bytes
from cedm_ray.distributed.session import get, ray_cluster
from cedm_ray.distributed.shares import cluster_runner
from cedm_ray.distributed.spares import Spares
from cedm_ray.distributed.tasks import choose_device, is_nested, located
from cedm_ray.errors import ConfigurationError, InputDataError, TryAgainError
from cedm_ray.evaluation.evaluate import evaluate
from cedm_ray.evaluation.requests import Request
from cedm_ray.features.store import open_features
from cedm_ray.features.weight_files import cache_folder
from cedm_ray.lock import exclusive_lock
from cedm_ray.search.clusterings import neighbors_features, read_labels
from cedm_ray.search.driver import Driver
from cedm_ray.search.goals import Goal
from cedm_ray.search.likeness import reuse_records
from cedm_ray.search.measure import open_detector, reference_statistics
from cedm_ray.search.model import keep_model
from cedm_ray.search.outcome import dead_end, restore, study_result
from cedm_ray.search.packing import Cluster
from cedm_ray.search.prepare import prepare_images, prepare_neighbors
from cedm_ray.search.results import Notice, Progress, Show
from cedm_ray.search.settings import EXTRACTOR
from cedm_ray.search.showcase import make_showcase
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.stop import obeying
from cedm_ray.search.study import Study

_REMEMBER_S = 1.0


def run_study(
    study: Study,
    space: SearchSpace,
    goal: Goal,
    *,
    address: str | None,
    show: Show,
    labels: str | None = None,
    like: Study | None = None,
    spares: Spares | None = None,
    next_imports: Sequence[str] = (),
) -> ImageSet:
    """Bring the study to the goal, and at the end of a search keep the best model, and measure it where finals.evaluate
    says so. Returns the image set.

    address: as `ray_cluster`; Ray is not started where nothing is left to do. show: takes what the user should see.
    labels: as `read_labels`, for what is shown of the fits and for nothing else. like: an earlier study, whose
    features, neighbors and fits are taken over as far as they are those of the same images. spares: as `ray_ahead` gave
    them, which keeps them. next_imports: modules that the caller needs next, imported while the first task computes.
    Raises the errors of `errors.py`.
    """
    with _driving(study, space, address, show) as images:
        if like is not None:
            reuse_records(like, study, space, images, show)
        most = max((goal.num_clusters or 0, *goal.sizes))
        if most > len(images):
            raise ConfigurationError(f"C must not exceed the {len(images):,} images, got {most}")
        truth = read_labels(labels, images)
        agenda = restore(study, space, len(images), goal).agenda
        if (error := dead_end(study, agenda)) is not None:
            raise error
        if agenda.finished and not (goal.kind == "search" and _is_unfinished(study, space, images)):
            return images
        if goal.kind == "search":
            space.check_searched(images.size)
        import_meanwhile("cedm_ray.distributed.tuning", "cedm_ray.distributed.trainable")
        if truth is not None:
            # The first fit's line would wait for it, and the next fit for that.
            import_meanwhile("sklearn.metrics")
        with _on_cluster(study, address), _with_first_spares(spares, space, goal) as spares:
            total = cluster_resources()
            show(Notice(text=f"{len(images):,} images; Ray has {total.cpus:g} CPUs and {total.gpus:g} GPUs"))
            _prepare(study, space, images, show)
            for extractor in space.other_extractors if goal.kind == "search" else ():
                _prepare(study, space, images, show, other=extractor)
            if goal.kind in ("search", "trial"):
                with _timed(study, "reference"):
                    _on_a_gpu(_measure_reference, str(study.path.absolute()), located(space))
            _run_tasks(study, space, images, goal, _importing(next_imports, show), truth, spares)
            if goal.kind == "search":
                _keep_best(study, space, images, show)
                _measure_best(study, space, images, address, show)
        return images


def run_features(study: Study, space: SearchSpace, *, address: str | None, show: Show) -> tuple[ImageSet, str]:
    """Only the images, features and neighbors of a study. Returns the image set and the features' key."""
    with _driving(study, space, address, show) as images, _on_cluster(study, address):
        return images, _prepare(study, space, images, show)


def run_other_features(
    study: Study, space: SearchSpace, extractor: str, weights: Path | None, *, address: str | None, show: Show
) -> tuple[ImageSet, str]:
    """The features of another extractor than the space's, beside those. Returns the image set and their key."""
    other = space.features.model_copy(update={"extractor": extractor, "weights": weights})
    with (
        _driving(study, space, address, show) as images,
        _on_cluster(study, address),
        _timed(study, "features"),
    ):
        changed = space.model_copy(update={"features": other})
        return images, prepare_features(study, changed, images, cluster_resources(), show)[1]


def run_images(study: Study, space: SearchSpace, *, show: Show) -> ImageSet:
    """Only the images of a study; Ray is not started."""
    with _driving(study, space, None, show) as images:
        return images


@contextlib.contextmanager
def _driving(study: Study, space: SearchSpace, address: str | None, show: Show) -> Iterator[ImageSet]:
    """Be the study's only driver, with its space settled and its images there; many of them are imported over the
    cluster at `address`."""
    durable.check_writable(study.path)
    with exclusive_lock(study.lock) as lock, obeying(study, lock):
        study.settle(space.settled(), SearchSpace.completed)
        if (study.images / durable.MANIFEST).exists():
            yield prepare_images(study, space, show)
            return
        with _timed(study, "images"), head_watched(study), cluster_decode(address, show) as decode:
            images = prepare_images(study, space, show, decode)
        yield images


@contextlib.contextmanager
def _on_cluster(study: Study, address: str | None) -> Iterator[None]:
    """As `ray_cluster`, and raises TryAgainError once the head is lost."""
    with head_watched(study), ray_cluster(address):
        yield


def _prepare(study: Study, space: SearchSpace, images: ImageSet, show: Show, *, other: str | None = None) -> str:
    """Features and neighbors, computed where they are missing. other: of that extractor instead of the space's own.
    Returns the features' key."""
    space = space if other is None else space.changed(((EXTRACTOR, other),))
    with _timed(study, "features"):
        _, key = prepare_features(study, space, images, cluster_resources(), show)
    known = neighbors_features(study, other)
    fits = [fit for fit in study.fits().values() if fit.changes.get(EXTRACTOR) == other]
    if known not in (None, key) and fits:
        mend = "put back the features or weights that the study was begun with, or begin another study"
        raise InputDataError(
            f"{space.features.extractor} gives other features than {study.path} has fits of", mend=mend
        )
    if known != key:
        with _timed(study, "neighbors"):
            for notice in _on_a_gpu(_find_neighbors, str(study.path.absolute()), space, key, other):
                show(notice)
    return key


def _run_tasks(
    study: Study,
    space: SearchSpace,
    images: ImageSet,
    goal: Goal,
    show: Show,
    labels: np.ndarray | None,
    spares: Spares,
) -> None:
    """One Tune experiment that runs whatever the driver asks for, until it asks for nothing more."""
    # Here because Tune takes a second to import, in which Ray can start.
    from ray import tune

    from cedm_ray.distributed.metrics import DriverMetrics, study_metrics
    from cedm_ray.distributed.trainable import StudyTask
    from cedm_ray.distributed.tuning import DriverNews, DriverScheduler, DriverSearcher, tune_folder, tune_name

    show = _printing_to(sys.stdout, show)
    # Asked of a GPU only where a fit's share of it is to be found.
    one_gpu = gpu_bytes() if space.resources.fit.gpus is None else None
    # Asked again and again, because a cluster grows and shrinks.
    cluster = Remembered(lambda: cluster_nodes(one_gpu))
    driver = Driver(
        study=study,
        space=space,
        goal=goal,
        images=images,
        cluster=cluster,
        show=show,
        labels=labels,
    )
    searcher = DriverSearcher(driver)
    registry = None
    if is_nested(space):
        from cedm_ray.distributed.nested import start_registry

        registry = start_registry()
    runs = len(list(study.ray.glob("run-*")))
    tuner = tune.Tuner(
        StudyTask,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=DriverScheduler(driver, searcher.names, spares),
            num_samples=-1,
            metric="distance",
            mode="min",
            reuse_actors=True,
            trial_name_creator=tune_name,
            trial_dirname_creator=tune_folder,
        ),
        run_config=tune.RunConfig(
            name=f"run-{runs + 1:03d}",
            storage_path=str(study.ray.absolute()),
            callbacks=[
                DriverNews(driver, searcher, registry, show, cluster.forget),
                DriverMetrics(driver, searcher.names, study_metrics(study.path.absolute().name)),
            ],
            # What died is begun again by the driver, which knows what it died of and where there is room now.
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )
    # Of what died the driver says what is to be known; Tune would put a traceback of Ray's among the lines, and in the
    # end that trials did not complete which did, in another process.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        # Tune prints a header even when told to be silent, and standard output is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            tuner.fit()
    finally:
        stage, started = {"search": "trials", "trial": "trials"}.get(goal.kind, "fits"), driver.began
        if goal.kind in ("bound", "search") and driver.bound_was_unknown:
            # That of a bound that was found the driver has written down.
            stage, started = ("bound", started) if driver.bound_found is None else (stage, driver.bound_found)
        study.write_timing(stage, time.monotonic() - started)
    if driver.fatal is not None:
        raise driver.fatal
    if not driver.agenda.finished:
        raise TryAgainError("Ray Tune ended before the search did", mend="run the same command again: it continues")


@contextlib.contextmanager
def _with_first_spares(spares: Spares | None, space: SearchSpace, goal: Goal) -> Iterator[Spares]:
    """The processes of the first tasks, which start while the features are looked at. spares: that are kept already,
    None for new ones."""
    first = 1 if goal.kind == "trial" else space.resources.fit.at_once
    # The unconditional baseline trains beside the first fits.
    first += goal.kind == "search"
    wanted = {node.name: min(first, int(node.cpus)) for node in cluster_nodes().nodes}
    if spares is not None:
        spares.wanted = wanted
        yield spares
        return
    with Spares(wanted).kept() as spares:
        yield spares


def _importing(modules: Sequence[str], show: Show) -> Show:
    """The same, and modules are imported in another thread once a task tells of its progress: before that, they would
    take the cores that its process starts on."""
    left = list(modules)

    def shown(event: Any) -> None:
        if left and isinstance(event, Progress):
            import_meanwhile(*left)
            left.clear()
        show(event)

    return shown


def _printing_to(stdout: TextIO, show: Show) -> Show:
    """The same, for a time in which Tune's own standard output is thrown away: what `show` prints is not Tune's."""

    def shown(event: Any) -> None:
        with contextlib.redirect_stdout(stdout):
            show(event)

    return shown


class Remembered:
    """The same question, answered from memory for a second: it is asked at every step of every task."""

    def __init__(self, ask: Callable[[], Cluster]) -> None:
        self._ask = ask
        self._last: tuple[float, Cluster] | None = None

    def __call__(self) -> Cluster:
        now = time.monotonic()
        if self._last is None or now - self._last[0] > _REMEMBER_S:
            self._last = now, self._ask()
        return self._last[1]

    def forget(self) -> None:
        """Something died: what was there before it is no answer to whether its machine still is."""
        self._last = None


def _keep_best(study: Study, space: SearchSpace, images: ImageSet, show: Show) -> None:
    """Keep the best model's weights, and images of it for the report; say so where they are not the measured ones."""
    result = study_result(study, space, images)
    if result is None or result.best is None:
        return
    checkpoint = durable.newest_checkpoint(study.checkpoints(result.best))
    if checkpoint is None:
        raise TryAgainError(f"{result.best} has no checkpoint yet")
    for reason in checkpoint.fallbacks:
        show(Notice(text=f"the kept model is that of {checkpoint.manifest['images_seen']:,} images: {reason}"))
    with _timed(study, "samples"):
        keep_model(checkpoint, study.best)
        _on_a_gpu(_make_showcase, str(study.path.absolute()))


def _measure_best(study: Study, space: SearchSpace, images: ImageSet, address: str | None, show: Show) -> None:
    """Do what `cedm-ray evaluate STUDY` does, over the cluster; what was measured before is read from its record."""
    result = study_result(study, space, images)
    if not space.finals.evaluate or result is None or result.best is None:
        return
    with _timed(study, "evaluation"), cluster_runner(address) as run:
        told = evaluate(Request(source=str(study.path)), cache=cache_folder(), run=run, show=show)
    if told["collapsed"]:
        show(Notice(text=f"the images of {told['name']} are all alike: no number of them is a result"))


def _is_unfinished(study: Study, space: SearchSpace, images: ImageSet) -> bool:
    """Whether all is trained and the best model still lies only among the trial's checkpoints, or is not measured."""
    result = study_result(study, space, images)
    if result is None or result.best is None:
        return False
    manifest = study.best / durable.MANIFEST
    if not manifest.exists() or not study.showcase.exists():
        return True
    kept = durable.read_record(manifest)
    if kept["trial"] != result.best:
        return True
    measured = [one["images_seen"] for one in study.evaluations(result.best)]
    return space.finals.evaluate and kept["images_seen"] not in measured


def _find_neighbors(path: str, space: SearchSpace, key: str, extractor: str | None, device: str) -> list[Notice]:
    study, notices = Study(Path(path)), []
    features = open_features(study.features(key))
    prepare_neighbors(study, space, features, key, device, notices.append, extractor=extractor)
    return notices


def _measure_reference(path: str, space: SearchSpace, device: str) -> None:
    """Also finds a detector that cannot be opened before anything is trained for it."""
    study = Study(Path(path))
    images = open_image_set(study.images)
    reference_statistics(study, space, images, open_detector(space, images, device))


def _make_showcase(path: str, device: str) -> None:
    study = Study(Path(path))
    make_showcase(study, open_image_set(study.images), device)


def _on_a_gpu(function, *arguments):
    """Call `function(*arguments, device)` on a GPU of the cluster, or in this process where the cluster has none."""
    if not cluster_resources().gpus:
        return function(*arguments, "cpu")
    task = ray.remote(num_cpus=1, num_gpus=1)(_call_on_device)
    return get(task.remote(function, arguments))


def _call_on_device(function, arguments):
    return function(*arguments, choose_device(1.0))


@contextlib.contextmanager
def _timed(study: Study, stage: str) -> Iterator[None]:
    """Record the wall seconds of a stage, also of one that ends in an error; whoever watches is told that it began."""
    if ray.is_initialized():
        from cedm_ray.distributed.metrics import tell_phase  # With Tune, which is imported while Ray starts.

        tell_phase(study.path.absolute().name, stage)
    started = time.monotonic()
    try:
        yield
    finally:
        study.write_timing(stage, time.monotonic() - started)
