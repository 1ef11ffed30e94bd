"""TorchScript files as extractors."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

from cedm_ray.errors import InputDataError, SecurityError
from cedm_ray.features.extractors import open_extractor


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


def test_a_torchscript_file_is_used_as_it_is(tmp_path, image_set, save_script):
    images = image_set()
    extractor = open_extractor(str(save_script(MeanAndDeviation(), tmp_path / "moments.pt")), images)
    features = extractor(torch.from_numpy(images.pixels))
    assert (extractor.name, extractor.dim, features.dtype) == ("moments", 6, torch.float32)
    assert np.allclose(features[:, :3], images.pixels.mean((2, 3)), rtol=1e-6)
    assert np.allclose(features[:, 3:], images.pixels.std((2, 3), ddof=1), rtol=1e-6)
    assert not features.requires_grad


def test_the_key_of_a_file_follows_its_content_and_not_its_name(tmp_path, image_set, save_script):
    save_script(MeanAndDeviation(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    save_script(MeanAndDeviation().train(), tmp_path / "c.pt")
    keys = [open_extractor(str(tmp_path / f"{name}.pt"), image_set()).key for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_pickles_are_refused_unread(tmp_path, image_set):
    class Explosive:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    (tmp_path / "a.pt").write_bytes(pickle.dumps(Explosive()))
    torch.save({"weights": torch.zeros(2)}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(SecurityError, match=f"{name} holds pickled Python objects, not TorchScript"):
            open_extractor(str(tmp_path / name), image_set())


def test_files_that_are_not_torchscript_are_named(tmp_path, image_set):
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
def test_networks_that_do_not_give_features_are_named(tmp_path, module, message, image_set, save_script):
    path = save_script(module, tmp_path / "net.pt")
    with pytest.raises(InputDataError, match=message):
        open_extractor(str(path), image_set())
