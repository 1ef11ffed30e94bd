"""Extraction by actors gives the bytes that one process gives, and does again only what is missing or damaged."""

import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from cedm_ray.distributed import features
from cedm_ray.distributed.inventory import cluster_resources
from cedm_ray.errors import InputDataError
from cedm_ray.features.extractors import open_extractor
from cedm_ray.features.store import extract_features
from cedm_ray.search.packing import Node
from cedm_ray.search.prepare import prepare_images
from cedm_ray.search.results import Notice, Progress


def test_actors_extract_what_one_process_extracts_and_mend_a_damaged_shard(cluster, space, study, shown, tmp_path):
    images = prepare_images(study, space, shown.append)
    found, key = features.prepare_features(study, space, images, cluster_resources(), shown.append)
    alone = extract_features(images, open_extractor("pixels", images), tmp_path / "alone", batch_size=256)
    for _ in alone:
        pass
    np.testing.assert_array_equal(found, np.load(tmp_path / "alone" / "shard-00000.npy"))
    shard = study.features(key) / "shard-00000.npy"
    whole = shard.read_bytes()
    written = shard.stat().st_mtime_ns
    features.prepare_features(study, space, images, cluster_resources(), shown.append)
    assert shard.stat().st_mtime_ns == written
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    features.prepare_features(study, space, images, cluster_resources(), shown.append)
    assert shard.read_bytes() == whole
    assert any(isinstance(event, Notice) and "computed again" in event.text for event in shown)


def test_a_lost_worker_is_started_anew_and_its_shard_computed_again(
    cluster, space, study, shown, tmp_path, monkeypatch
):
    class DyingOnce(features.ExtractionWorker):
        """Its process dies in the middle of the second shard."""

        def run(self, folder, index, *sizes):
            if index == 1 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            super().run(folder, index, *sizes)

    images = prepare_images(study, space, shown.append)
    monkeypatch.setattr(features, "ExtractionWorker", DyingOnce)
    found, _ = features.prepare_features(study, space, images, cluster_resources(), shown.append, shard_rows=100)
    assert (tmp_path / "died").exists()
    expected = open_extractor("pixels", images)(torch.from_numpy(np.array(images.pixels)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def with_extractor(space, **features):
    return space.model_copy(update={"features": space.features.model_copy(update=features)})


def test_of_several_shards_only_the_missing_one_is_computed_again(cluster, space, study, shown, tmp_path):
    """300 images in two shards: a worker each, the rows in order, and an interrupted run goes on at its shard."""
    images = prepare_images(study, space, shown.append)
    found, key = features.prepare_features(study, space, images, cluster_resources(), shown.append, shard_rows=200)
    extractor = open_extractor("pixels", images)
    expected = extractor(torch.from_numpy(np.array(images.pixels)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    folder = study.features(key)
    shards = sorted(folder.glob("shard-*.npy"))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards}
    assert len(before) == 2
    # Died while it wrote the second shard: the file may be there, its record is not.
    (folder / "shard-00001.json").unlink()
    shown.clear()
    again, _ = features.prepare_features(study, space, images, cluster_resources(), shown.append, shard_rows=200)
    np.testing.assert_array_equal(again, found)
    assert {path.name: path.read_bytes() for path in shards} == {name: data for name, (data, _) in before.items()}
    changed = [path.name for path in shards if path.stat().st_mtime_ns != before[path.name][1]]
    assert changed == ["shard-00001.npy"]
    assert [event.total for event in shown if isinstance(event, Progress)][-1] == 100


class NothingBelow(torch.nn.Module):
    """Mean and largest value of each image; NaN where the mean is below the limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = images.float().flatten(1)
        mean = values.mean(1)
        return torch.stack([torch.where(mean < self.limit, torch.nan, mean), values.amax(1)], dim=1)


def test_images_whose_features_are_not_finite_are_named_through_the_cluster(cluster, space, study, shown, tmp_path):
    images = prepare_images(study, space, shown.append)
    means = np.array(images.pixels).reshape(len(images), -1).mean(1)
    darkest, second = np.argsort(means)[:2]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script. is deprecated", category=FutureWarning)
        torch.jit.script(NothingBelow(float(means[[darkest, second]].mean()))).save(str(tmp_path / "net.pt"))
    space = with_extractor(space, extractor=str(tmp_path / "net.pt"))
    with pytest.raises(InputDataError, match=rf"NaN or infinite .* for 1 of 300 images: {images.names[darkest]}"):
        features.prepare_features(study, space, images, cluster_resources(), shown.append)


def test_workers_take_the_weights_that_the_space_names(cluster, space, study, shown, tmp_path, monkeypatch):
    """By a relative path, although no worker runs in the folder where the command was given."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_vit", num_classes=0)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "mine.safetensors")
    images = prepare_images(study, space, shown.append)
    few = images.pixels[:3]
    space = with_extractor(space, extractor="test_vit", weights=Path("mine.safetensors"))
    found, _ = features.prepare_features(study, space, images, cluster_resources(), shown.append)
    extractor = open_extractor("test_vit", images, weights=Path("mine.safetensors"))
    assert extractor.name == "test_vit+mine"
    np.testing.assert_allclose(found[:3], extractor(torch.from_numpy(np.array(few))), atol=1e-4)


def test_machines_hold_as_many_copies_of_a_network_as_their_memory_allows():
    gib = 2**30
    small = Node(name="a", cpus=8, gpus=0, memory_bytes=8 * gib)
    large = Node(name="b", cpus=8, gpus=0, memory_bytes=40 * gib)
    assert features.worker_memory(0, [small, large]) == (gib // 2, 16)
    # 0.5 GiB and twice 3.75: one and five of 8 GiB each.
    assert features.worker_memory(15 * gib // 4, [small, large]) == (8 * gib, 6)
    assert features.worker_memory(30 * gib, [small, large]) == (40 * gib, 1)
    unknown = Node(name="c", cpus=4, gpus=0, memory_bytes=float("inf"))
    assert features.worker_memory(gib, [unknown]) == (5 * gib // 2, 4)
