"""Weights from files: what is read, what is refused, and that everything has its place."""

import argparse
import pickle

import pytest
import safetensors.torch
import timm
import torch

from cedm_ray.errors import InputDataError, SecurityError
from cedm_ray.features.state_dicts import load_strictly, read_tensors, unwrapped


def small_vit(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model("test_vit", num_classes=0).eval()


def same(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = network.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_tensors_are_read_from_safetensors_and_from_torchs_files(tmp_path):
    tensors = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert torch.equal(found["a"], tensors["a"])


def test_of_a_training_checkpoint_the_teacher_is_read(tmp_path):
    student, teacher = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    torch.save({"student": student, "teacher": teacher, "epoch": 3, "optimizer": {"lr": 1.0}}, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth")["w"] == 1
    torch.save({"epoch": 3, "state_dict": {"model": teacher}}, tmp_path / "y.pth.tar")
    assert read_tensors(tmp_path / "y.pth.tar")["w"] == 1


def test_pickles_of_anything_but_tensors_are_refused_unread(tmp_path):
    class Explosive:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    (tmp_path / "a.pth").write_bytes(pickle.dumps(Explosive()))
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(SecurityError, match=f"{name} holds pickled Python objects other than tensors") as caught:
            read_tensors(tmp_path / name)
        assert "tensors alone" in caught.value.mend


def test_files_without_named_tensors_are_named(tmp_path, save_script):
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name in ("none.pth", "list.pth"):
        with pytest.raises(InputDataError, match=f"{name} holds no tensors by name"):
            read_tensors(tmp_path / name)
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    save_script(torch.nn.Linear(1, 1), tmp_path / "script.pth")
    for name in ("text.safetensors", "empty.pth", "script.pth"):
        with pytest.raises(InputDataError, match=rf"{name} is (no file of weights|not a file of torch)"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("w", "w"),
        ("module.w", "w"),
        ("module.base_encoder.w", "w"),
        ("teacher.module.backbone.w", "w"),
        ("encoder.w", "w"),
        # An architecture's own names are left alone, even where they begin like a wrapper.
        ("encoder.layer.w", "encoder.layer.w"),
    ],
)
def test_the_prefixes_of_training_programs_are_taken_off(name, inside):
    assert list(unwrapped({name: torch.zeros(1)}, {"w", "encoder.layer.w"})) == [inside]


def test_what_lies_beside_the_prefix_is_another_network():
    tensors = {f"module.{name}": torch.zeros(1) for name in ("base_encoder.w", "momentum_encoder.w", "predictor.w")}
    assert list(unwrapped(tensors, {"w"})) == ["w"]


@pytest.mark.parametrize("prefix", ["", "module.", "module.base_encoder.", "backbone."])
def test_a_networks_own_tensors_go_back_into_it(tmp_path, prefix):
    source, target = small_vit(1), small_vit(2)
    tensors = {prefix + name: value for name, value in source.state_dict().items()}
    tensors |= {f"{prefix}head.weight": torch.zeros(5, 64), f"{prefix}head.bias": torch.zeros(5)}
    load_strictly(target, tensors, tmp_path, ignored=("head",))
    assert same(source, target)


def test_a_position_embedding_of_another_grid_is_brought_to_the_networks_by_timm(tmp_path):
    """The oracle is timm's own loading of the same tensors."""
    source = timm.create_model("test_vit", num_classes=0, img_size=96).state_dict()
    oracle = timm.create_model(
        "test_vit", pretrained=True, num_classes=0, pretrained_cfg_overlay={"state_dict": dict(source)}
    )
    target = small_vit()
    load_strictly(target, source, tmp_path)
    assert same(oracle, target)


def test_what_does_not_fit_is_named(tmp_path):
    network = small_vit()
    tensors = dict(network.state_dict())
    del tensors["norm.bias"]
    tensors["extra.weight"] = torch.zeros(1)
    tensors["norm.weight"] = torch.zeros(7)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputDataError, match="does not fit VisionTransformer") as caught:
        load_strictly(network, tensors, tmp_path / "x.pth")
    for part in ("missing: norm.bias", "unexpected: extra.weight", r"norm.weight is [7], not [64]"):
        assert part in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_long_lists_of_what_does_not_fit_are_cut(tmp_path):
    with pytest.raises(InputDataError, match=r"unexpected: w0, w1, w2 and 7 more"):
        load_strictly(small_vit(), {f"w{i}": torch.zeros(1) for i in range(10)}, tmp_path)


def test_older_files_of_convolutional_networks_have_no_counters(tmp_path):
    source, target = (timm.create_model("test_resnet", num_classes=0) for _ in range(2))
    tensors = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_strictly(target, tensors, tmp_path)
    assert same(source, target)
