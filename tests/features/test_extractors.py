import pickle
import warnings
import zipfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.decomposition import PCA

from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import ConfigurationError, InputDataError, SecurityError
from cedm_ray.features import extractors
from cedm_ray.features.extractors import distance_name, extractor_name, open_extractor


class MeanAndDeviation(torch.nn.Module):
    """[B, 3, H, W] -> [B, 6]: mean and standard deviation of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = images.double().flatten(2)
        return torch.cat([values.mean(2), values.std(2)], dim=1)


class ReturnsPixels(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class ReturnsIntegers(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


class NeedsLargeImages(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2] > 100, "too small for me"
        return images.float().flatten(1)


class InceptionLike(torch.nn.Module):
    """The signature of the Inception-v3 file: features only on request."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return images.mean((2, 3)) if return_features else images


def save_script(module: torch.nn.Module, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script. is deprecated", category=FutureWarning)
        torch.jit.script(module).save(str(path))
    return path


def image_set(count: int = 40, size: int = 6, seed: int = 0, grey: bool = False) -> ImageSet:
    channels = 1 if grey else 3
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    pixels = np.repeat(pixels, 3 // channels, axis=1)
    return ImageSet(name="x", names=tuple(map(str, range(count))), pixels=pixels, digest=f"{count}-{size}-{seed}")


# Pixels -------------------------------------------------------------------------------------------------------------


def test_pixels_are_scikit_learns_principal_components():
    images = image_set(count=200)
    extractor = open_extractor("pixels", images, pixel_components=10)
    features = extractor(torch.from_numpy(images.pixels)).numpy()
    values = images.pixels.reshape(200, -1) / 127.5 - 1
    oracle = PCA(10, svd_solver="full").fit(values)
    assert features.dtype == np.float32
    assert np.allclose(np.abs(features), np.abs(oracle.transform(values)), atol=1e-4)
    assert np.allclose(np.abs(extractor.components.numpy()), np.abs(oracle.components_.T), atol=1e-5)


def test_pixel_features_are_the_same_for_any_tiling(monkeypatch):
    images = image_set(count=50)
    whole = open_extractor("pixels", images, pixel_components=8)
    monkeypatch.setattr(extractors, "_TILE_ROWS", 7)
    tiled = open_extractor("pixels", images, pixel_components=8)
    assert torch.allclose(whole.components, tiled.components, atol=1e-5)


def test_every_component_has_its_largest_entry_positive():
    components = open_extractor("pixels", image_set(), pixel_components=12).components
    largest = components.abs().argmax(0)
    assert (components[largest, torch.arange(12)] > 0).all()


def test_components_without_variance_are_dropped():
    """Grey images of 6x6 have 36 degrees of freedom, although they have 108 values; 5 images span 4 dimensions."""
    assert open_extractor("pixels", image_set(count=200, grey=True)).dim == 36
    assert open_extractor("pixels", image_set(count=5)).dim == 4


def test_images_that_are_all_alike_have_no_pixel_features():
    pixels = np.full((5, 3, 4, 4), 77, np.uint8)
    images = ImageSet(name="x", names=tuple("abcde"), pixels=pixels, digest="0")
    with pytest.raises(InputDataError, match="all 5 images are alike"):
        open_extractor("pixels", images)


def test_large_images_are_averaged_to_the_largest_side_before_the_components(monkeypatch):
    assert extractors._PIXELS_SIDE == 32
    monkeypatch.setattr(extractors, "_PIXELS_SIDE", 8)
    small = image_set(count=10, size=8)
    large = np.repeat(np.repeat(small.pixels, 2, axis=2), 2, axis=3)
    doubled = ImageSet(name="x", names=small.names, pixels=large, digest="0")
    features = [open_extractor("pixels", s)(torch.from_numpy(s.pixels)) for s in (small, doubled)]
    assert torch.allclose(features[0], features[1], atol=1e-3)


def test_pixels_refuse_images_of_another_size():
    extractor = open_extractor("pixels", image_set(size=6))
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 6, 6\], got \[1, 3, 5, 5\]"):
        extractor(torch.zeros(1, 3, 5, 5, dtype=torch.uint8))


def test_the_key_of_pixels_follows_images_and_width():
    keys = [open_extractor("pixels", image_set(seed=s), pixel_components=c).key for s in (0, 1) for c in (3, 4)]
    assert len(set(keys)) == 4
    assert open_extractor("pixels", image_set(seed=0), pixel_components=3).key == keys[0]


# TorchScript --------------------------------------------------------------------------------------------------------


def test_a_torchscript_file_is_used_as_it_is(tmp_path):
    images = image_set()
    extractor = open_extractor(str(save_script(MeanAndDeviation(), tmp_path / "moments.pt")), images)
    features = extractor(torch.from_numpy(images.pixels))
    assert (extractor.name, extractor.dim, features.dtype) == ("moments", 6, torch.float32)
    assert np.allclose(features[:, :3], images.pixels.mean((2, 3)), rtol=1e-6)
    assert np.allclose(features[:, 3:], images.pixels.std((2, 3), ddof=1), rtol=1e-6)
    assert not features.requires_grad


def test_the_key_of_a_file_follows_its_content_and_not_its_name(tmp_path):
    save_script(MeanAndDeviation(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    save_script(MeanAndDeviation().train(), tmp_path / "c.pt")
    keys = [open_extractor(str(tmp_path / f"{name}.pt"), image_set()).key for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_pickles_are_refused_unread(tmp_path):
    class Explosive:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    (tmp_path / "a.pt").write_bytes(pickle.dumps(Explosive()))
    torch.save({"weights": torch.zeros(2)}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(SecurityError, match=f"{name} holds pickled Python objects, not TorchScript"):
            open_extractor(str(tmp_path / name), image_set())


def test_files_that_are_not_torchscript_are_named(tmp_path):
    with pytest.raises(InputDataError, match=r"there is no file .*missing.pt") as caught:
        open_extractor(str(tmp_path / "missing.pt"), image_set())
    assert "TorchScript" in caught.value.mend
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputDataError, match=r"text.pt is not a TorchScript file"):
        open_extractor(str(tmp_path / "text.pt"), image_set())
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(InputDataError, match=r"zip.pt is not a TorchScript file"):
        open_extractor(str(tmp_path / "zip.pt"), image_set())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ReturnsPixels(), r"returned \[2, 3, 6, 6\] for 2 images"),
        (ReturnsIntegers(), "returned torch.uint8"),
        (NeedsLargeImages(), r"failed on uint8 \[2, 3, 6, 6\]: .*too small for me"),
    ],
)
def test_networks_that_do_not_give_features_are_named(tmp_path, module, message):
    path = save_script(module, tmp_path / "net.pt")
    with pytest.raises(InputDataError, match=message):
        open_extractor(str(path), image_set())


# Inception ----------------------------------------------------------------------------------------------------------


def test_inception_is_read_from_the_cache_folder_and_asked_for_its_features(tmp_path, monkeypatch):
    monkeypatch.setenv("CEDM_RAY_CACHE", str(tmp_path))
    save_script(InceptionLike(), tmp_path / "inception-2015-12-05.pt")
    images = image_set()
    extractor = open_extractor("inception", images)
    assert (extractor.name, extractor.dim) == ("inception", 3)
    assert np.allclose(extractor(torch.from_numpy(images.pixels)), images.pixels.mean((2, 3)), rtol=1e-6)


def test_missing_inception_weights_say_where_they_belong(tmp_path, monkeypatch):
    import cleanfid.downloads_helper

    def offline(fpath):
        raise OSError("no route to host")

    monkeypatch.setenv("CEDM_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cleanfid.downloads_helper, "check_download_inception", offline)
    with pytest.raises(InputDataError, match=r"not at .*cache/inception-2015-12-05.pt .*: no route to host") as caught:
        open_extractor("inception", image_set())
    assert "https://" in caught.value.mend
    assert list((tmp_path / "cache").iterdir()) == []


# timm ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def timm_without_weights(monkeypatch):
    """timm as it is, but with seeded random weights in place of downloaded ones."""
    create = timm.create_model

    def create_untrained(name, *, pretrained, **kwargs):
        assert pretrained
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_untrained)


def test_a_timm_model_gives_its_pooled_features_under_its_own_transform(timm_without_weights):
    """The oracle is timm's own pipeline on Pillow images."""
    images = image_set(count=3, size=24)
    extractor = open_extractor("test_vit.r160_in1k", images)
    network = timm.create_model("test_vit.r160_in1k", pretrained=True, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**{**config, "crop_pct": 1.0})
    with torch.inference_mode():
        pictures = [Image.fromarray(p.transpose(1, 2, 0)) for p in images.pixels]
        expected = network(torch.stack([transform(picture) for picture in pictures]))
    features = extractor(torch.from_numpy(images.pixels))
    assert (extractor.name, extractor.dim) == ("test_vit.r160_in1k", 64)
    assert torch.nn.functional.cosine_similarity(features, expected).min() > 0.9999
    assert (features - expected).abs().max() < 0.02


def test_the_key_of_a_timm_model_follows_its_weights(timm_without_weights, monkeypatch):
    key = open_extractor("test_vit.r160_in1k", image_set()).key
    assert open_extractor("test_vit.r160_in1k", image_set(seed=1)).key == key
    create = timm.create_model

    def create_other(*args, **kwargs):
        network = create(*args, **kwargs)
        with torch.no_grad():
            next(network.parameters()).mul_(2)
        return network

    monkeypatch.setattr(timm, "create_model", create_other)
    assert open_extractor("test_vit.r160_in1k", image_set()).key != key


def test_an_unknown_timm_model_is_answered_with_close_matches():
    with pytest.raises(
        ConfigurationError, match=r"vit_base_patch16_224.dinoo is no .* mean vit_base_patch16_224.dino "
    ):
        open_extractor("vit_base_patch16_224.dinoo", image_set())


def test_missing_timm_weights_say_what_is_missing_and_where_it_belongs(monkeypatch):
    def offline(*args, **kwargs):
        raise FileNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(timm, "create_model", offline)
    message = r"weights of the timm model vit_base_patch16_224.dino are not in .*/hub and cannot be downloaded"
    with pytest.raises(InputDataError, match=message) as caught:
        open_extractor("vit_base_patch16_224.dino", image_set())
    assert "TorchScript file" in caught.value.mend


def test_dinov2_runs_at_224_pixels(monkeypatch):
    seen = {}

    def create_small(name, *, pretrained, num_classes, img_size):
        seen["name"] = name
        network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        network.register_forward_pre_hook(lambda module, args: seen.update(shape=tuple(args[0].shape)))
        network.pretrained_cfg = timm.models.get_pretrained_cfg(name).to_dict()
        return network

    monkeypatch.setattr(timm, "create_model", create_small)
    extractor = open_extractor("dinov2", image_set())
    assert extractor.name == "dinov2"
    assert seen == {"name": "vit_large_patch14_dinov2.lvd142m", "shape": (2, 3, 224, 224)}


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "name", "distance"),
    [
        ("inception", "inception", "FID"),
        ("dinov2", "dinov2", "FDD"),
        ("pixels", "pixels", "FD[pixels]"),
        ("vit_base_patch16_224.dino", "vit_base_patch16_224.dino", "FD[vit_base_patch16_224.dino]"),
        ("../weights/cifar10_resnet56.pt", "cifar10_resnet56", "FD[cifar10_resnet56]"),
        ("mine.torchscript", "mine", "FD[mine]"),
        ("./inception", "file:inception", "FD[file:inception]"),
        ("dinov2.pt", "file:dinov2", "FD[file:dinov2]"),
    ],
)
def test_only_the_true_networks_give_fid_and_fdd(spec, name, distance):
    assert extractor_name(spec) == extractor_name(name) == name
    assert distance_name(spec) == distance_name(name) == distance
