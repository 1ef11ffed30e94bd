"""A tiny real study without Ray: the loop in `drive` plays the cluster, which proves that the core needs none."""

import dataclasses
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

# Before torch is imported: on a busy machine its threads wait for each other at every layer of a tiny network, which
# was seen to take twenty times as long as one thread alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from cedm_ray import cli as door
from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.durable import newest_checkpoint
from cedm_ray.features.extractors import open_extractor
from cedm_ray.features.store import extract_features, feature_key
from cedm_ray.search.driver import Driver
from cedm_ray.search.fit import run_fit
from cedm_ray.search.goals import FitTask, Goal, Task
from cedm_ray.search.measure import open_detector, reference_statistics
from cedm_ray.search.model import keep_model
from cedm_ray.search.outcome import study_result
from cedm_ray.search.packing import Cluster, Node
from cedm_ray.search.prepare import prepare_images, prepare_neighbors
from cedm_ray.search.results import TrialReport
from cedm_ray.search.showcase import make_showcase
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.search.trial import run_trial

TINY = {
    "name": "tiny",
    "seed": 3,
    "features": {"extractor": "pixels", "pixel_components": 16},
    "clustering": {
        "num_heads": 2,
        "hidden": 32,
        "bottleneck": 16,
        "num_neighbors": 10,
        "batch_size": 100,
        "epochs": 4,
        "warmup_epochs": 1,
        "learning_rate": 1e-3,
        "feature_norm": "standardize",
    },
    "bound": {"alpha": 0.96, "c_start": 4, "c_limit": 64},
    "candidates": {"count": 3},
    "rungs": {"rungs_kimg": [0.256, 0.512], "reduction_factor": 2},
    "network": {
        "model_channels": 16,
        "channel_mult": [1],
        "num_blocks": 1,
        "attention_resolutions": [],
        "dropout": 0.1,
    },
    "augmentation": {"probability": 0},
    "training": {"batch_size": 64, "lr_rampup_kimg": 0.1, "ema_halflife_kimg": 0.05, "ema_rampup_ratio": None},
    "checkpoints": {"every_kimg": 0.128},
    "sampling": {"num_steps": 4, "batch_size": 32},
    "evaluation": {"detector": "pixels", "num_samples": 32},
}


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory) -> Path:
    """300 digits as PNG files."""
    folder = tmp_path_factory.mktemp("digit-files")
    for index, digit in enumerate(load_digits().images[:300]):
        Image.fromarray((digit * 255 / 16).round().astype(np.uint8)).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_space(digit_folder) -> SearchSpace:
    """A whole search in seconds."""
    return SearchSpace.model_validate({**TINY, "images": {"source": str(digit_folder)}})


def exhaust(generator: Iterator) -> tuple[list, object]:
    """(what a generator yielded, what it returned)."""
    said = []
    while True:
        try:
            said.append(next(generator))
        except StopIteration as end:
            return said, end.value


def prepare(study: Study, space: SearchSpace, show: Callable = lambda event: None) -> ImageSet:
    """Settle the space; images, features and neighbors."""
    study.settle(space.settled())
    images = prepare_images(study, space, show)
    for other in (None, *space.other_extractors):
        components = space.features.pixel_components
        extractor = open_extractor(other or space.features.extractor, images, pixel_components=components)
        key = feature_key(images, extractor)
        _, features = exhaust(extract_features(images, extractor, study.features(key), batch_size=64))
        prepare_neighbors(study, space, features, key, "cpu", show, extractor=other)
    return images


def open_task(study: Study, space: SearchSpace, task: Task) -> Iterator:
    """The generator that does a task."""
    if isinstance(task, FitTask):
        return run_fit(study, space, task, device="cpu")
    return run_trial(study, space, device="cpu", **dataclasses.asdict(task))


def drive(
    study: Study,
    space: SearchSpace,
    goal: Goal | None = None,
    *,
    cpus: float = 3,
    steps: int | None = None,
    show: Callable = lambda event: None,
) -> Driver:
    """Do what Ray does, in this process: start what the driver asks for, and give every task one turn after another.

    steps: turns after which everything is dropped as if the power were cut; None = until the goal.
    """
    goal = goal or Goal(kind="search")
    images = open_image_set(study.images)
    cluster = Cluster(nodes=(Node(name="one", cpus=cpus),))
    driver = Driver(study=study, space=space, goal=goal, images=images, cluster=lambda: cluster, show=show)
    running: dict[str, Iterator] = {}
    while not driver.finished:
        while (found := driver.next_task()) is not None:
            running[found[0].name] = open_task(study, driver.space_for(found[0]), found[0])
        assert running, "nothing runs, nothing is asked for, and the search is not finished"
        for name, events in list(running.items()):
            if steps is not None:
                steps -= 1
                if steps < 0:
                    return driver
            event = next(events, None)
            if isinstance(event, TrialReport) and driver.judge(event).status != "running":
                events.close()
                event = None
            if event is None:
                del running[name]
                driver.end(name)
    return driver


class _MeanColors(torch.nn.Module):
    """A detector of four features: the mean of each quarter's colors, in units of 50 levels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).mean(1).flatten(1) / 50


def mean_colors(pixels: np.ndarray) -> np.ndarray:
    """The same by NumPy: uint8 [n, 3, S, S] with S even, to float64 [n, 4]."""
    half = pixels.shape[-1] // 2
    quarters = pixels.reshape(len(pixels), 3, 2, half, 2, half).astype(np.float64).mean((1, 3, 5))
    return quarters.reshape(len(pixels), 4) / 50


@pytest.fixture(scope="session")
def color_network(tmp_path_factory) -> Path:
    """The TorchScript file of a detector whose features NumPy can compute."""
    path = tmp_path_factory.mktemp("network") / "mean_colors.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script. is deprecated", category=FutureWarning)
        torch.jit.script(_MeanColors()).save(str(path))
    return path


@pytest.fixture(scope="session")
def study_tools() -> SimpleNamespace:
    """What tests need to work on studies of their own."""
    return SimpleNamespace(exhaust=exhaust, prepare=prepare, drive=drive, open_task=open_task, mean_colors=mean_colors)


@pytest.fixture(scope="session")
def prepared(tiny_space, tmp_path_factory) -> Study:
    """Images, features, neighbors, the detector's reference and the fit of C = 4, and no trial. Copy it to change."""
    study = Study(tmp_path_factory.mktemp("prepared") / "study")
    images = prepare(study, tiny_space)
    reference_statistics(study, tiny_space, images, open_detector(tiny_space, images, "cpu"))
    exhaust(run_fit(study, tiny_space, FitTask(num_clusters=4, repeat=0), device="cpu"))
    return study


@pytest.fixture(scope="session")
def finished(prepared, tiny_space, tmp_path_factory) -> Study:
    """A study whose search is done and whose best model is kept. Copy it to change it."""
    study = Study(tmp_path_factory.mktemp("finished") / "study")
    shutil.copytree(prepared.path, study.path)
    drive(study, tiny_space)
    images = open_image_set(study.images)
    result = study_result(study, tiny_space, images)
    assert result.best is not None, "the tiny study must have a best model; change TINY"
    keep_model(newest_checkpoint(study.checkpoints(result.best)), study.best)
    make_showcase(study, images, "cpu")
    return study


@pytest.fixture(scope="session")
def proposing_space(tiny_space) -> SearchSpace:
    """A search of the weight of guidance and of the clusters' gamma with C."""
    plain = tiny_space.model_dump(mode="json")
    return SearchSpace.model_validate(
        {
            **plain,
            "bound": {**plain["bound"], "c_limit": 4},
            "candidates": {"explicit": [3], "also": {"sampling.guidance": [0, 1], "clustering.gamma": [0.6, 0.9]}},
            "network": {**plain["network"], "label_dropout": 0.1},
            # Everybody goes to the last rung.
            "rungs": {**plain["rungs"], "grace_kimg": 1},
        }
    )


@pytest.fixture(scope="session")
def proposed(proposing_space, tmp_path_factory) -> Study:
    """That search, finished."""
    study = Study(tmp_path_factory.mktemp("proposed") / "study")
    images = prepare(study, proposing_space)
    drive(study, proposing_space)
    checkpoint = newest_checkpoint(study.checkpoints(study_result(study, proposing_space, images).best))
    keep_model(checkpoint, study.best)
    make_showcase(study, images, "cpu")
    return study


@pytest.fixture
def fresh(prepared, tmp_path) -> Study:
    """A copy of the prepared study."""
    shutil.copytree(prepared.path, tmp_path / "study")
    return Study(tmp_path / "study")


@pytest.fixture
def done(finished, tmp_path) -> Study:
    """A copy of the finished study."""
    shutil.copytree(finished.path, tmp_path / "done")
    return Study(tmp_path / "done")


class Ended(BaseException):
    """Stands for os._exit: nothing of ours catches it."""


@pytest.fixture
def run(monkeypatch, capfd):
    """Call the door as a shell would; (exit code, standard output, standard error)."""

    def exit_with(code):
        raise Ended(code)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cedm-ray", *map(str, arguments)])
        monkeypatch.setattr(door.os, "_exit", exit_with)
        monkeypatch.setattr(door.signal, "signal", lambda *_: None)
        capfd.readouterr()
        with pytest.raises(Ended) as ended:
            door.main()
        return (ended.value.args[0], *capfd.readouterr())

    return call
