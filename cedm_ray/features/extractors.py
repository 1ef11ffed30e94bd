"""Frozen networks g(x): uint8 images in, float32 features out.

One word names an extractor everywhere, in a configuration and on the command line:

- `pixels`      principal components of the set's own pixels; needs no network and no weights
- `inception`   the TensorFlow Inception-v3 of the Fréchet Inception distance, pool3, D = 2048
- `dinov2`      DINOv2 ViT-L/14 at 224 pixels, normalized CLS token, D = 1024
- a path        a TorchScript file, uint8 [B, 3, H, W] -> float [B, D]; a word is a path if it has a slash or ends in
                .pt, .ts or .torchscript
- another word  a timm model with its pretrained weights; `vit_base_patch16_224.dino` is the paper's

Shapes: N images, B batch, S image side, D feature width, P pixel values of one image (3 times side squared).
Source: method.md 1.1 (extractors and their preprocessing), 4.1 (Inception), 4.2 (DINOv2).
"""

import contextlib
import difflib
import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from pydantic import Field

from cedm_ray.config import Config, digest
from cedm_ray.data.image_set import ImageSet
from cedm_ray.durable import sha256_file
from cedm_ray.errors import ConfigurationError, InputDataError, SecurityError

DINOV2_MODEL = "vit_large_patch14_dinov2.lvd142m"
INCEPTION_FILE = "inception-2015-12-05.pt"
_RESERVED = ("pixels", "inception", "dinov2")
# Larger images are averaged down to this side before the PCA, so that its covariance is at most 3072 x 3072.
_PIXELS_SIDE = 32
_TILE_ROWS = 1024
_SMALLEST_EIGENVALUE = 1e-8


class FeaturesConfig(Config):
    """Which features the images are clustered by, and how they are computed."""

    extractor: str = Field("pixels", min_length=1, description="pixels, inception, dinov2, a path or a timm model")
    batch_size: int = Field(256, ge=1, description="images per call of the network")
    pixel_components: int = Field(256, ge=1, description="for pixels: the largest number of principal components")


class Extractor(Protocol):
    """A frozen network. Calling it maps uint8 [B, 3, S, S] on `device` to float32 [B, D] there, without gradients.

    name: short, for naming metrics. dim: D. key: SHA-256 (hex) of kind, weights and transform; equal keys mean equal
    features of equal images. device: where it runs.
    """

    name: str
    dim: int
    key: str
    device: torch.device

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


def open_extractor(
    spec: str, images: ImageSet, *, pixel_components: int = 256, device: str | torch.device = "cpu"
) -> Extractor:
    """The Extractor that `spec` names (the module's docstring has the grammar), on `device`.

    images: the set that `pixels` is fitted on; the other kinds only take its image size to try themselves out.
    Raises ConfigurationError for an unknown timm model, InputDataError for weights that are missing or do not map
    images to features, SecurityError for a pickled file.
    """
    device = torch.device(device)
    name = extractor_name(spec)
    if spec == "pixels":
        return _fit_pixels(images, pixel_components, device)
    if spec == "inception":
        return _open_inception(device)
    if spec == "dinov2":
        return _open_timm(DINOV2_MODEL, name, images.size, device, img_size=224)
    if _is_path(spec):
        return _open_torchscript(Path(absolute_spec(spec)), name, images.size, device)
    return _open_timm(spec, name, images.size, device)


def extractor_name(spec: str) -> str:
    """The name that results computed with `spec` carry: the word itself, for a file its name without the ending.

    A file that would be taken for a built-in extractor is marked as a file. Idempotent.
    """
    if not _is_path(spec):
        return spec
    stem = Path(spec).stem
    return f"file:{stem}" if stem in _RESERVED else stem


def distance_name(spec: str) -> str:
    """What a Fréchet distance in the features of `spec` (or of an extractor's name) may be called.

    FID means Inception-v3 and FDD means DINOv2 ViT-L, nothing else does.
    """
    return {"inception": "FID", "dinov2": "FDD"}.get(spec) or f"FD[{extractor_name(spec)}]"


def absolute_spec(spec: str) -> str:
    """`spec` as it can be opened from any folder: a path made absolute, any other word as it is."""
    return str(Path(spec).expanduser().absolute()) if _is_path(spec) else spec


def _is_path(spec: str) -> bool:
    return "/" in spec or spec.endswith((".pt", ".ts", ".torchscript"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkExtractor:
    """A network together with its transform. forward: uint8 [B, 3, S, S] -> features [B, D], on `device`."""

    name: str
    dim: int
    key: str
    device: torch.device
    forward: Callable[[torch.Tensor], torch.Tensor]

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward(images).float()


# Pixels -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelExtractor:
    """Principal components of pixels in [-1, 1].

    size: S that it was fitted for. mean: float32 [P]. components: float32 [P, D], orthonormal columns by falling
    variance, each with its largest entry positive.
    """

    key: str
    size: int
    mean: torch.Tensor
    components: torch.Tensor
    name: str = "pixels"

    @property
    def dim(self) -> int:
        return self.components.shape[1]

    @property
    def device(self) -> torch.device:
        return self.components.device

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"images must be [B, 3, {self.size}, {self.size}], got {list(images.shape)}")
        return (_flatten_pixels(images, torch.float32) - self.mean) @ self.components


def _flatten_pixels(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [B, 3, S, S] -> [B, P] in [-1, 1]; sides above 32 are area-averaged to 32."""
    values = images.to(dtype)
    if images.shape[-1] > _PIXELS_SIDE:
        values = F.adaptive_avg_pool2d(values, _PIXELS_SIDE)
    return values.flatten(1) / 127.5 - 1


def _fit_pixels(images: ImageSet, pixel_components: int, device: torch.device) -> PixelExtractor:
    """PCA by the covariance, summed in float64 over tiles of the memory map."""
    if pixel_components < 1:
        raise ValueError(f"pixel_components must be at least 1, got {pixel_components}")
    total: torch.Tensor | float = 0.0
    outer: torch.Tensor | float = 0.0
    for start in range(0, len(images), _TILE_ROWS):
        # A copy: the memory map is read-only and torch knows no such tensors.
        tile = torch.from_numpy(np.array(images.pixels[start : start + _TILE_ROWS]))
        values = _flatten_pixels(tile, torch.float64)
        total = total + values.sum(0)
        outer = outer + values.T @ values
    mean = total / len(images)
    covariance = ((outer - len(images) * torch.outer(mean, mean)) / (len(images) - 1)).numpy()
    width = len(covariance)
    count = min(pixel_components, width, len(images) - 1)
    variances, components = scipy.linalg.eigh(covariance, subset_by_index=[width - count, width - 1])
    variances, components = variances[::-1], components[:, ::-1]
    # Rounding alone leaves less than this in the covariance of constant pixels, a single differing pixel leaves more.
    if variances[0] <= 1e-12:
        raise InputDataError(f"all {len(images):,} images are alike, so their pixels have no principal components")
    components = components[:, variances > _SMALLEST_EIGENVALUE * variances[0]]
    largest = components[np.abs(components).argmax(0), np.arange(components.shape[1])]
    return PixelExtractor(
        key=digest({"kind": "pixels", "components": pixel_components, "images": images.digest}),
        size=images.size,
        mean=mean.float().to(device),
        components=torch.from_numpy(np.ascontiguousarray(components * np.sign(largest))).float().to(device),
    )


# TorchScript --------------------------------------------------------------------------------------------------------


def _open_torchscript(path: Path, name: str, size: int, device: torch.device) -> NetworkExtractor:
    network = _load_torchscript(path, device)
    mend = "the file must be TorchScript that maps uint8 [B, 3, H, W] to float [B, D]"
    return NetworkExtractor(
        name=name,
        dim=_try_out(network, size, device, f"the network in {path}", mend),
        key=digest({"kind": "torchscript", "weights": sha256_file(path), "transform": "its own"}),
        device=device,
        forward=network,
    )


def _load_torchscript(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    mend = "give the path of a TorchScript file that maps uint8 [B, 3, H, W] to float [B, D]"
    if not path.is_file():
        raise InputDataError(f"there is no file {path}", mend=mend)
    if _is_pickled(path):
        raise SecurityError(f"{path} holds pickled Python objects, not TorchScript, and was not read", mend=mend)
    try:
        with _quiet_about_jit():
            return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputDataError(f"{path} is not a TorchScript file: {reason}", mend=mend) from None


@contextlib.contextmanager
def _quiet_about_jit() -> Iterator[None]:
    # The format stays: a file that needs none of our code is what makes a local network safe to share.
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            # Which of the two it is depends on torch's version.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.load. is deprecated", category=category)
        yield


def _is_pickled(path: Path) -> bool:
    """Whether a file is a plain pickle or what torch.save writes; TorchScript alone has constants and code."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = {name.split("/", 1)[-1] for name in archive.namelist()}
        return "data.pkl" in parts and "constants.pkl" not in parts
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"


def _try_out(
    forward: Callable[[torch.Tensor], torch.Tensor], size: int, device: torch.device, what: str, mend: str
) -> int:
    """D, found by two images of size S."""
    probe = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=device)
    try:
        with torch.inference_mode():
            features = forward(probe)
    except (RuntimeError, ValueError, TypeError, AssertionError, torch.jit.Error) as error:
        # TorchScript prints its own traceback first.
        reason = str(error).strip().rpartition("\n")[2]
        raise InputDataError(f"{what} failed on uint8 [2, 3, {size}, {size}]: {reason}", mend=mend) from None
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 2:
        got = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise InputDataError(f"{what} returned {got} for 2 images, not [2, D]", mend=mend)
    if not features.is_floating_point():
        raise InputDataError(f"{what} returned {features.dtype}, not floating point", mend=mend)
    return features.shape[1]


# Inception ----------------------------------------------------------------------------------------------------------


def _open_inception(device: torch.device) -> NetworkExtractor:
    """The network of method.md 4.1: it resizes to 299 pixels itself, as the published distances were computed."""
    path = _find_inception()
    network = _load_torchscript(path, device)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return network(images.float(), return_features=True)

    dim = _try_out(forward, 299, device, f"the network in {path}", f"remove {path} to have it downloaded again")
    key = digest({"kind": "inception", "weights": sha256_file(path), "transform": "inside"})
    return NetworkExtractor(name="inception", dim=dim, key=key, device=device, forward=forward)


def _find_inception() -> Path:
    folder = Path(os.environ.get("CEDM_RAY_CACHE") or Path.home() / ".cache" / "cedm-ray").absolute()
    path = folder / INCEPTION_FILE
    if path.is_file():
        return path
    from cleanfid.downloads_helper import check_download_inception, inception_url

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may be looking for the file, so that it must appear there as a whole.
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            os.replace(check_download_inception(fpath=partial), path)
    except OSError as error:
        raise InputDataError(
            f"the Inception-v3 weights are not at {path} and cannot be downloaded: {error}",
            mend=f"download {inception_url} where there is a network and put it there, or name a TorchScript file",
        ) from None
    return path


# timm ---------------------------------------------------------------------------------------------------------------


def _open_timm(model: str, name: str, size: int, device: torch.device, **kwargs) -> NetworkExtractor:
    """A pretrained timm model without its classifier: its pooled features under its own transform."""
    import timm

    known = timm.list_pretrained()
    if model not in known and model not in {full.split(".")[0] for full in known}:
        near = difflib.get_close_matches(model, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigurationError(
            f"features.extractor: {model} is no pretrained timm model{hint}",
            mend="name another, or pixels, inception, dinov2, or the path of a TorchScript file (with a slash)",
        )
    try:
        network = timm.create_model(model, pretrained=True, num_classes=0, **kwargs).eval().to(device)
    except (OSError, RuntimeError) as error:
        raise _missing_weights(model, error) from None
    settings = timm.data.resolve_model_data_config(network)
    if "img_size" in kwargs:
        settings["input_size"] = (3, kwargs["img_size"], kwargs["img_size"])
    transform = {key: settings[key] for key in ("input_size", "interpolation", "mean", "std")}
    mean, std = (torch.tensor(settings[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))

    def forward(images: torch.Tensor) -> torch.Tensor:
        resized = _resize(images.float(), settings["input_size"][-1], settings["interpolation"])
        return network((resized / 255 - mean) / std)

    return NetworkExtractor(
        name=name,
        dim=_try_out(forward, size, device, f"the timm model {model}", "name another extractor"),
        key=digest({"kind": "timm", "model": model, "weights": _hash_weights(network), "transform": transform}),
        device=device,
        forward=forward,
    )


def _missing_weights(model: str, error: Exception) -> InputDataError:
    from huggingface_hub.constants import HF_HUB_CACHE

    reason = str(error).strip().partition("\n")[0]
    return InputDataError(
        f"the weights of the timm model {model} are not in {HF_HUB_CACHE} and cannot be downloaded: {reason}",
        mend=f"where there is a network run python -c \"import timm; timm.create_model('{model}', pretrained=True)\" "
        "and copy that folder here (HF_HUB_CACHE names another one), or name a TorchScript file instead",
    )


def _resize(values: torch.Tensor, side: int, interpolation: str) -> torch.Tensor:
    """[B, 3, S, S] to a model's exact side, antialiased and rounded to the 256 levels that an image file would have."""
    if values.shape[-1] == side:
        return values
    return F.interpolate(values, size=(side, side), mode=interpolation, antialias=True).round().clamp(0, 255)


def _hash_weights(network: torch.nn.Module) -> str:
    """SHA-256 (hex) over the names and bytes of all weights, wherever they were loaded from."""
    hasher = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        hasher.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()
