"""One small Ray cluster for all tests of this folder, and a study that is small enough to run many times."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

# Imported first, because it sets what Ray reads when it is imported.
import cedm_ray.distributed as distributed
from cedm_ray.distributed.run import run_study
from cedm_ray.search.goals import Goal
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

assert distributed.ENVIRONMENT


@pytest.fixture(scope="session")
def cluster():
    """Ray on loopback with four cores and no GPU; sockets need a short path, which pytest's own is not."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=folder,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def threads():
    """What runs a task in this process leaves it the cores that it had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """300 digits as PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    for index, digit in enumerate(load_digits().images[:300]):
        Image.fromarray((digit * 255 / 16).round().astype(np.uint8)).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session")
def space(images) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "name": "tiny",
            "images": {"source": str(images)},
            "clustering": {
                "num_heads": 2,
                "hidden": 32,
                "bottleneck": 16,
                "num_neighbors": 10,
                "batch_size": 100,
                "epochs": 4,
                "warmup_epochs": 1,
            },
            "bound": {"alpha": 0.9, "c_start": 4, "c_limit": 16},
            "candidates": {"count": 2},
            "rungs": {"rungs_kimg": [0.5, 1], "reduction_factor": 2},
            "network": {
                "model_channels": 16,
                "channel_mult": [1],
                "num_blocks": 1,
                "attention_resolutions": [],
                "dropout": 0,
            },
            "augmentation": {"probability": 0},
            "training": {"batch_size": 50, "lr_rampup_kimg": 0.1, "ema_halflife_kimg": 0.1},
            "sampling": {"num_steps": 3},
            "evaluation": {"detector": "pixels", "num_samples": 32},
        }
    )


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path / "study")


@pytest.fixture(scope="session")
def once_ready(space, study_tools, tmp_path_factory) -> Study:
    study = Study(tmp_path_factory.mktemp("ready") / "study")
    study_tools.prepare(study, space)
    # Whoever copies it may change what a study is settled with, but for its images and features.
    (study.path / "space.json").unlink()
    return study


@pytest.fixture
def ready(once_ready, study) -> Study:
    """`study` with its images, features and neighbors, which no process has to be started for."""
    shutil.copytree(once_ready.path, study.path)
    return study


@pytest.fixture(scope="session")
def baseline(cluster, once_ready, space, tmp_path_factory) -> Study:
    """The unconditional trial of the space, trained by one process that nothing happened to. Not to be changed."""
    study = Study(tmp_path_factory.mktemp("baseline") / "study")
    shutil.copytree(once_ready.path, study.path)
    run_study(study, space, Goal(kind="trial", num_clusters=None), address=None, show=lambda event: None)
    return study


@pytest.fixture
def shown() -> list:
    """Collects what the user would be shown."""
    return []
