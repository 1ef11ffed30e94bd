"""Small image sets and TorchScript files for the extractors' tests, and a cache folder of each test's own."""

import warnings

import numpy as np
import pytest
import torch

from cedm_ray.data.image_set import ImageSet


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The folder in which weights are looked for; no test sees the user's, nor reaches the network."""
    folder = tmp_path_factory.mktemp("user") / "cache"
    folder.mkdir()
    monkeypatch.setenv("CEDM_RAY_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def image_set():
    def make(count: int = 40, size: int = 6, seed: int = 0, grey: bool = False) -> ImageSet:
        channels = 1 if grey else 3
        pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
        pixels = np.repeat(pixels, 3 // channels, axis=1)
        return ImageSet(name="x", names=tuple(map(str, range(count))), pixels=pixels, digest=f"{count}-{size}-{seed}")

    return make


@pytest.fixture
def save_script():
    def save(module: torch.nn.Module, path):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.script. is deprecated", category=FutureWarning)
            torch.jit.script(module).save(str(path))
        return path

    return save
