"""timm's networks as extractors, against timm's own pipeline and against DINOv2's own rule for positions."""

import math

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.features.extractors import open_extractor
from cedm_ray.features.network import Transform
from cedm_ray.features.published import PublishedNetwork
from cedm_ray.features.timm_models import dinov2_positions, open_published, open_timm

CPU = torch.device("cpu")
MODEL = "test_vit.r160_in1k"


def seeded(seed: int = 0, **kwargs) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(MODEL, **kwargs).eval()


def save(network: torch.nn.Module, path):
    safetensors.torch.save_file(network.state_dict(), path)
    return path


def test_a_timm_model_gives_its_pooled_features_under_its_own_transform(cache, image_set):
    """The oracle is timm's own pipeline on Pillow images; the weights lie where a user without a network puts them."""
    save(seeded(), cache / f"{MODEL}.safetensors")
    images = image_set(count=3, size=24)
    extractor = open_extractor(MODEL, images)
    network = seeded()
    network.reset_classifier(0)
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**{**config, "crop_pct": 1.0})
    with torch.inference_mode():
        pictures = [Image.fromarray(p.transpose(1, 2, 0)) for p in images.pixels]
        expected = network(torch.stack([transform(picture) for picture in pictures]))
    features = extractor(torch.from_numpy(images.pixels))
    assert (extractor.name, extractor.dim) == (MODEL, 64)
    assert torch.nn.functional.cosine_similarity(features, expected).min() > 0.9999
    assert (features - expected).abs().max() < 0.02


def test_a_model_without_its_tag_is_looked_for_under_its_full_name(cache, image_set):
    save(seeded(), cache / f"{MODEL}.safetensors")
    assert open_extractor("test_vit", image_set()).dim == 64


def test_a_weight_file_goes_into_the_architecture_and_marks_its_name(tmp_path, cache, image_set):
    path = save(seeded(3), tmp_path / "mine.safetensors")
    extractor = open_extractor(MODEL, image_set(), weights=path)
    assert extractor.name == f"{MODEL}+mine"
    save(seeded(3), cache / f"{MODEL}.safetensors")
    # The same weights under the same transform, wherever they came from.
    assert open_extractor(MODEL, image_set(seed=1)).key == extractor.key
    save(seeded(4), tmp_path / "mine.safetensors")
    assert open_extractor(MODEL, image_set(), weights=path).key != extractor.key


def test_a_weight_file_of_another_network_is_refused(tmp_path, image_set):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(
        InputDataError, match=r"resnet.pth does not fit VisionTransformer: missing: .*unexpected: conv1"
    ):
        open_timm(MODEL, "x", 24, CPU, tmp_path / "resnet.pth")


def test_a_damaged_file_in_our_folder_is_named(cache, image_set):
    (cache / f"{MODEL}.safetensors").write_text("hello")
    with pytest.raises(InputDataError, match=r"r160_in1k.safetensors does not fit the timm model"):
        open_extractor(MODEL, image_set())


def test_an_unknown_timm_model_is_answered_with_close_matches(image_set):
    with pytest.raises(
        ConfigurationError, match=r"vit_base_patch16_224.dinoo is no .* mean vit_base_patch16_224.dino "
    ):
        open_extractor("vit_base_patch16_224.dinoo", image_set())


@pytest.mark.parametrize("spec", ["vit_base_patch16_224.dino", "dino_vitb16"])
def test_missing_timm_weights_say_what_is_missing_and_where_it_belongs(spec, image_set):
    with pytest.raises(InputDataError, match=r"neither at .*cache/vit_base_patch16_224.dino.safetensors") as caught:
        open_extractor(spec, image_set())
    assert "huggingface.co/timm/vit_base_patch16_224.dino/resolve/main/model.safetensors" in caught.value.mend


# The paper's rows, on an architecture small enough for a test -------------------------------------------------------


@pytest.fixture
def row():
    return PublishedNetwork(title="Small ViT", dim=64, timm=MODEL, ignored=("head", "masked_embed"))


@pytest.fixture
def small_side(monkeypatch):
    """The rows' transform at the 160 pixels of the small architecture."""
    transform = Transform(side=160, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    monkeypatch.setattr("cedm_ray.features.timm_models.IMAGENET_224", transform)
    return transform


def test_a_training_checkpoint_gives_the_features_of_its_teacher(row, small_side, tmp_path, image_set):
    """What iBOT and MoCo-v3 publish: a backbone under prefixes, with names beside it that are not the network's."""
    network = seeded(5, num_classes=0)
    teacher = {f"module.backbone.{name}": value for name, value in network.state_dict().items()}
    teacher["module.backbone.masked_embed"] = torch.zeros(1, 64)
    teacher["module.head.mlp.weight"] = torch.zeros(9, 64)
    torch.save({"student": {}, "teacher": teacher, "epoch": 7}, tmp_path / "checkpoint.pth")
    images = image_set(count=3, size=20)
    extractor = open_published(row, "small", images.size, CPU, tmp_path / "checkpoint.pth")
    pixels = torch.from_numpy(images.pixels)
    with torch.inference_mode():
        expected = network(small_side(pixels))
    assert (extractor.name, extractor.dim) == ("small", 64)
    assert torch.allclose(extractor(pixels), expected, atol=1e-6)


def test_the_published_weights_are_found_in_the_users_folder(row, small_side, cache, image_set):
    save(seeded(num_classes=0), cache / f"{MODEL}.safetensors")
    first = open_published(row, "small", 20, CPU, None)
    save(seeded(num_classes=0), cache / "copy.safetensors")
    assert open_published(row, "small", 20, CPU, cache / "copy.safetensors").key == first.key


def cubic_weights(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.75, which torch's plain bicubic resampling uses."""
    a, d = -0.75, np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def test_dinov2_positions_are_sampled_at_the_authors_scale():
    """By brute force: patch i is sampled at (i + 1/2) / scale - 1/2 with scale = (16 + 0.1) / 37, from four patches
    each way, those beyond the border being the last, and without a wider kernel for the coarser grid."""
    side, grid = 37, 16
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, 1 + side * side, 2, generator=generator)
    at = (np.arange(grid) + 0.5) * side / (grid + 0.1) - 0.5
    taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((grid, side))
    for row, (place, indices) in enumerate(zip(at, taps, strict=True)):
        np.add.at(matrix[row], indices.clip(0, side - 1), cubic_weights(place - indices))
    patches = embedding[0, 1:].numpy().reshape(side, side, 2)
    expected = np.einsum("ik,jl,klc->ijc", matrix, matrix, patches)
    found = dinov2_positions(embedding, grid)
    assert found.shape == (1, 1 + grid * grid, 2)
    assert torch.equal(found[0, 0], embedding[0, 0])
    assert np.allclose(found[0, 1:].reshape(grid, grid, 2).numpy(), expected, atol=1e-5)


def test_a_position_embedding_of_the_right_grid_stays_as_it_is():
    embedding = torch.randn(1, 1 + 16 * 16, 3, generator=torch.Generator().manual_seed(0))
    assert dinov2_positions(embedding, 16) is embedding


def test_dinov2_weights_made_for_a_finer_grid_run_at_the_tables_side(row, small_side, tmp_path):
    """The positions of the network that was opened are those of the rule and not timm's."""
    import dataclasses

    fine = seeded(num_classes=0, img_size=368)
    path = save(fine, tmp_path / "fine.safetensors")
    seen = {}
    create = timm.create_model

    def remember(*args, **kwargs):
        seen["network"] = create(*args, **kwargs)
        return seen["network"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", remember)
        open_published(dataclasses.replace(row, dinov2_positions=True), "small", 20, CPU, path)
    positions = seen["network"].pos_embed
    assert torch.equal(positions, dinov2_positions(fine.pos_embed, math.isqrt(positions.shape[1] - 1)))
