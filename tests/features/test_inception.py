"""Inception-v3: its file, its two resizes against Pillow, its class probabilities. The network itself is a stand-in."""

import dataclasses
import warnings

import cleanfid.downloads_helper
import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from PIL import Image

from cedm_ray.durable import sha256_file
from cedm_ray.errors import InputDataError, IntegrityError
from cedm_ray.features import inception
from cedm_ray.features.extractors import open_extractor
from cedm_ray.features.inception import INCEPTION, clean_resize, open_inception, open_inception_classifier

CPU = torch.device("cpu")


class Layers(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)).repeat(1, 683)[:, :2048]


class InceptionLike(torch.nn.Module):
    """The signature of the Inception-v3 file: features on request, else probabilities, and its layers by name."""

    def __init__(self, width: int = 2048, total: float = 1.0) -> None:
        super().__init__()
        self.layers = Layers()
        self.width = width
        self.total = total

    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        features = self.layers(img)[:, : self.width]
        if return_features:
            return features
        bias = 0.0 if no_output_bias else 1.0
        scores = features[:, :3] + bias * torch.arange(3, device=img.device)
        return self.total * torch.softmax(scores / 100, 1)


@pytest.fixture
def weights(cache, save_script, monkeypatch):
    """The stand-in at the published file's place, and taken for what was published."""
    path = save_script(InceptionLike(), cache / INCEPTION.name)
    monkeypatch.setattr(inception, "INCEPTION", dataclasses.replace(INCEPTION, sha256=sha256_file(path)))
    return path


def test_inception_is_read_from_the_cache_folder_and_asked_for_its_features(weights, image_set):
    images = image_set()
    extractor = open_extractor("inception", images)
    assert (extractor.name, extractor.dim) == ("inception", 2048)
    assert np.allclose(extractor(torch.from_numpy(images.pixels))[:, :3], images.pixels.mean((2, 3)), rtol=1e-6)


def test_clean_inception_gets_resized_images_in_its_layers(weights, image_set):
    """As clean-fid: (x - 128) / 128 of the resized image goes to the layers, and nothing is resized inside."""
    images = image_set(count=3, size=20)
    extractor = open_extractor("inception_clean", images)
    resized = np.stack([pillow_resize(image) for image in images.pixels])
    expected = ((resized - 128) / 128).mean((2, 3))
    assert (extractor.name, extractor.dim) == ("inception_clean", 2048)
    assert np.allclose(extractor(torch.from_numpy(images.pixels))[:, :3], expected, atol=1e-5)


def pillow_resize(image: np.ndarray) -> np.ndarray:
    """uint8 [3, S, S] -> [3, 299, 299], each channel by Pillow in floating point: what clean-fid's resizer does."""
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in image]
    return np.stack([np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for c in channels])


@pytest.mark.parametrize("size", [32, 299, 512])
def test_the_clean_resize_is_pillows_on_floats(size, image_set):
    images = image_set(count=2, size=size).pixels
    expected = np.stack([pillow_resize(image) for image in images])
    assert np.abs(clean_resize(torch.from_numpy(images)).numpy() - expected).max() < 5e-3


def test_the_two_resizes_have_two_keys(weights, image_set):
    keys = {open_extractor(spec, image_set()).key for spec in ("inception", "inception_clean")}
    assert len(keys | {open_inception_classifier(CPU).key}) == 3


def test_class_probabilities_leave_out_the_bias_of_the_last_layer(weights, image_set):
    images = image_set(count=4)
    classifier = open_inception_classifier(CPU)
    expected = torch.softmax(torch.from_numpy(images.pixels.mean((2, 3)) / 100).float(), 1)
    found = classifier(torch.from_numpy(images.pixels))
    assert (classifier.name, classifier.dim) == ("inception_probabilities", 3)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_named_file_is_used_instead_of_the_cached_one(tmp_path, save_script, image_set):
    path = save_script(InceptionLike(), tmp_path / "my.pt")
    assert open_extractor("inception", image_set(), weights=path).name == "inception"
    with pytest.raises(InputDataError, match=r"there is no weight file .*missing.pt"):
        open_inception(CPU, tmp_path / "missing.pt")


def test_another_network_is_not_taken_for_inception(tmp_path, save_script):
    path = save_script(InceptionLike(width=64), tmp_path / "small.pt")
    with pytest.raises(InputDataError, match="gives 64 features, Inception-v3 gives 2048"):
        open_inception(CPU, path)
    path = save_script(InceptionLike(total=2.0), tmp_path / "scores.pt")
    with pytest.raises(InputDataError, match="they sum to 2"):
        open_inception_classifier(CPU, path)


@pytest.mark.parametrize("opens", [open_inception, open_inception_classifier])
def test_another_file_of_the_published_name_is_refused_wherever_it_lies(opens, cache, tmp_path, save_script):
    for folder, weights in ((cache, None), (tmp_path, tmp_path / INCEPTION.name)):
        path = save_script(InceptionLike(), folder / INCEPTION.name)
        with pytest.raises(
            IntegrityError, match=r"inception-2015-12-05.pt has the SHA-256 \w{64}, not f58cb9b6"
        ) as caught:
            opens(CPU, weights)
        assert "remove it" in caught.value.mend if weights is None else "another name" in caught.value.mend
        assert not path.with_name(f"{path.name}.sha256").exists(), "nothing is noted of what was refused"


def test_the_weights_come_from_where_clean_fid_has_them():
    assert cleanfid.downloads_helper.inception_url == INCEPTION.url


@pytest.mark.parametrize(("spec", "mode"), [("inception", "legacy_tensorflow"), ("inception_clean", "clean")])
def test_the_features_are_those_of_clean_fids_own_wrapper_and_resizer(weights, image_set, spec, mode):
    images = image_set(count=3, size=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = InceptionV3W(str(weights.parent), download=False, resize_inside=mode == "legacy_tensorflow")
        resized = [build_resizer(mode)(image.transpose(1, 2, 0)) for image in images.pixels]
    expected = theirs(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float())
    found = open_extractor(spec, images)(torch.from_numpy(images.pixels))
    assert torch.allclose(found, expected, atol=1e-2 / 128 if mode == "clean" else 0)
