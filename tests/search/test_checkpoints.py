"""Checkpoints in the background: training goes on meanwhile, and nothing is acknowledged before it is durable."""

import threading

import pytest
import torch

from cedm_ray import durable
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.sample import SampleConfig
from cedm_ray.diffusion.state import TrainConfig, TrainState
from cedm_ray.diffusion.unet import UNetConfig
from cedm_ray.errors import StorageError
from cedm_ray.search import checkpoints
from cedm_ray.search.checkpoints import CheckpointWriter
from cedm_ray.search.model import Meaning, load_checkpoint

UNET = UNetConfig(model_channels=8, channel_mult=(1,), num_blocks=1, attention_resolutions=())
MEANING = Meaning(
    trial="unconditional",
    num_clusters=None,
    class_ids=(),
    counts=(),
    image_size=8,
    augment_dim=0,
    network=UNET,
    edm=EDMConfig(),
    sampling=SampleConfig(),
)


def _state(images_seen=0, fill=None):
    state = TrainState.create(UNET, EDMConfig(), TrainConfig(), AugmentConfig(probability=0), 8, 0, 0, "cpu")
    state.images_seen = images_seen
    if fill is not None:
        with torch.no_grad():
            state.net.net.conv_in.bias.fill_(fill)
    return state


@pytest.fixture
def gate(monkeypatch):
    """Writes that stop until they are let through; gate.started is set by each that begins."""

    class Gate:
        started, opened = threading.Event(), threading.Event()

    original = checkpoints.save_checkpoint

    def held(*arguments):
        Gate.started.set()
        assert Gate.opened.wait(60)
        original(*arguments)

    monkeypatch.setattr(checkpoints, "save_checkpoint", held)
    return Gate


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(gate, tmp_path):
    state = _state(images_seen=7, fill=0.5)
    with CheckpointWriter(tmp_path, MEANING, keep=2) as writer:
        writer.save(state)
        assert gate.started.wait(60)
        assert durable.newest_checkpoint(tmp_path) is None
        with torch.no_grad():
            state.net.net.conv_in.bias.fill_(3.0)
        state.images_seen = 8
        gate.opened.set()
        writer.wait()
        loaded = _state()
        load_checkpoint(durable.newest_checkpoint(tmp_path), loaded)
    assert loaded.images_seen == 7
    assert loaded.net.net.conv_in.bias.eq(0.5).all()
    assert writer.blocked_s > 0


def test_the_next_checkpoint_waits_for_the_one_before(gate, tmp_path):
    with CheckpointWriter(tmp_path, MEANING, keep=2) as writer:
        writer.save(_state(images_seen=1))
        second = threading.Thread(target=lambda: writer.save(_state(images_seen=2)))
        second.start()
        assert gate.started.wait(60)
        gate.started.clear()
        # The second write has not begun, and cannot, before the first is through.
        assert second.is_alive()
        assert not gate.started.is_set()
        gate.opened.set()
        second.join(60)
        writer.wait()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000000000001", "000000000002"]


def test_at_most_so_many_are_kept(tmp_path):
    with CheckpointWriter(tmp_path, MEANING, keep=2) as writer:
        for images_seen in (1, 2, 3, 4):
            writer.save(_state(images_seen=images_seen))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000000000003", "000000000004"]


@pytest.mark.parametrize("when", ["wait", "save", "end"])
def test_a_failed_write_is_told_by_whatever_comes_next(monkeypatch, tmp_path, when):
    def full(*arguments):
        raise StorageError("the storage is full")

    monkeypatch.setattr(checkpoints, "save_checkpoint", full)
    writer = CheckpointWriter(tmp_path, MEANING, keep=2)

    def use():
        with writer:
            writer.save(_state(images_seen=1))
            if when == "wait":
                writer.wait()
            elif when == "save":
                writer.save(_state(images_seen=2))

    with pytest.raises(StorageError, match="the storage is full"):
        use()
    # Once is enough.
    writer.wait()


def test_an_error_of_training_stays_the_error_and_the_write_under_way_is_finished(gate, tmp_path):
    def end():
        with CheckpointWriter(tmp_path, MEANING, keep=2) as writer:
            writer.save(_state(images_seen=5))
            gate.opened.set()
            raise ArithmeticError("diverged")

    with pytest.raises(ArithmeticError, match="diverged"):
        end()
    assert durable.newest_checkpoint(tmp_path).manifest["images_seen"] == 5
