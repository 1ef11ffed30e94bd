"""Frozen networks g(x): uint8 images in, float32 features out. One word names each, on the command line as in YAML.

- `pixels`           principal components of the set's own pixels; needs no network and no weights
- `inception`        the TensorFlow Inception-v3 of the Fréchet Inception distance, pool3, D = 2048
- `inception_clean`  the same network behind clean-fid's `clean` resize; its distance is not FID
- `dinov2`           DINOv2 ViT-L/14, the detector of FDD, D = 1024
- a row of `published`: `dino_vitb16`, `mocov3_vitb16`, `ibot_vitl16`, `dinov2_vitg14`, `openclip_vitbigg14`
- `openclip:MODEL:TAG`  any OpenCLIP model
- a path             a TorchScript file, uint8 [B, 3, H, W] -> float [B, D]; a word is a path if it has a slash or ends
                     in .pt, .ts, .torchscript or .npy
- a path of a .npy   features that were computed elsewhere, [N, D] in the order of the image set; no detector
- another word       a timm model with its pretrained weights, `vit_base_patch16_224.dino`

Each but `pixels` and a path takes its weights from a file instead, where one is named (`weights`).

Shapes: B batch, S image side, D feature width.
Source: method.md 1.1 (extractors and their preprocessing), 4.1 (Inception), 4.2 (DINOv2).
"""

from pathlib import Path

import torch
from pydantic import Field

from cedm_ray.config import Config
from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import ConfigurationError
from cedm_ray.features.feature_file import open_feature_file
from cedm_ray.features.inception import INCEPTION, open_inception
from cedm_ray.features.network import Extractor
from cedm_ray.features.openclip import PREFIX as OPENCLIP_PREFIX
from cedm_ray.features.openclip import OpenClip, open_openclip
from cedm_ray.features.pixels import fit_pixels
from cedm_ray.features.published import PUBLISHED
from cedm_ray.features.timm_models import open_published, open_timm
from cedm_ray.features.torchscript import open_torchscript

__all__ = [
    "Extractor",
    "FeaturesConfig",
    "absolute_spec",
    "distance_name",
    "extractor_name",
    "is_path",
    "open_extractor",
    "open_text_encoder",
]

_FEATURE_FILE = ".npy"
_INCEPTION = ("inception", "inception_clean")
_BUILT_IN = ("pixels", *_INCEPTION, *PUBLISHED)


class FeaturesConfig(Config):
    """Which features the images are clustered by, and how they are computed."""

    extractor: str = Field(
        "pixels", min_length=1, description="pixels, a network of the paper by its name, a timm model, or a path"
    )
    weights: Path | None = Field(None, description="a file with the extractor's weights; None: the published ones")
    batch_size: int = Field(256, ge=1, description="images per call of the network")
    pixel_components: int = Field(256, ge=1, description="for pixels: the largest number of principal components")


def open_extractor(
    spec: str,
    images: ImageSet,
    *,
    pixel_components: int = 256,
    weights: Path | None = None,
    device: str | torch.device = "cpu",
) -> Extractor:
    """The Extractor that `spec` names (the module's docstring has the grammar), on `device`.

    images: the set that `pixels` is fitted on; the other kinds only take its image size to try themselves out.
    weights: a file to take the weights from; None = the published ones, downloaded where they are not there yet.
    Raises ConfigurationError for an unknown model or a missing extra, InputDataError for weights that are missing or do
    not map images to features, SecurityError for a file of pickled objects.
    """
    device = torch.device(device)
    name = extractor_name(spec, weights)
    if weights is not None and (spec == "pixels" or is_path(spec)):
        raise ConfigurationError(f"{spec} takes no weights, and features.weights names {weights}")
    if spec == "pixels":
        return fit_pixels(images, pixel_components, device)
    if spec in _INCEPTION:
        return open_inception(device, weights, clean=spec == "inception_clean")
    if _is_openclip(spec):
        return open_text_encoder(spec, images, weights=weights, device=device).images
    if spec in PUBLISHED:
        return open_published(PUBLISHED[spec], name, images.size, device, weights)
    if spec.endswith(_FEATURE_FILE):
        return open_feature_file(Path(absolute_spec(spec)), name, images)
    if is_path(spec):
        return open_torchscript(Path(absolute_spec(spec)), name, images.size, device)
    return open_timm(spec, name, images.size, device, weights)


def open_text_encoder(
    spec: str, images: ImageSet, *, weights: Path | None = None, device: str | torch.device = "cpu"
) -> OpenClip:
    """The OpenCLIP model that `spec` names, with its image and its text side. Raises as `open_extractor`, and
    ConfigurationError where `spec` is no OpenCLIP model."""
    if not _is_openclip(spec):
        raise ConfigurationError(
            f"{spec} embeds images only; texts need an OpenCLIP model",
            mend=f"name openclip_vitbigg14, or {OPENCLIP_PREFIX}MODEL:TAG",
        )
    if spec in PUBLISHED:
        model, tag = PUBLISHED[spec].openclip
    else:
        model, _, tag = spec.removeprefix(OPENCLIP_PREFIX).partition(":")
    return open_openclip(model, tag or None, extractor_name(spec, weights), images.size, torch.device(device), weights)


def extractor_name(spec: str, weights: Path | None = None) -> str:
    """The name that results computed with `spec` carry: the word itself, for a file its name without the ending.

    A file that would be taken for a built-in extractor is marked as a file. Weights that were given mark the name with
    theirs, except a copy of the Inception file under its published name. Idempotent without weights.
    """
    if is_path(spec):
        stem = Path(spec).stem
        return f"file:{stem}" if stem in _BUILT_IN else stem
    if weights is None or (spec in _INCEPTION and Path(weights).name == INCEPTION.name):
        return spec
    return f"{spec}+{Path(weights).stem}"


def distance_name(spec: str, weights: Path | None = None) -> str:
    """What a Fréchet distance in the features of `spec` (or of an extractor's name) may be called.

    FID means Inception-v3 with TensorFlow's resize and FDD means DINOv2 ViT-L, both with their published weights, and
    nothing else does.
    """
    known = {"inception": "FID", "inception_clean": "FID[clean]", "dinov2": "FDD"}
    name = extractor_name(spec, weights)
    return known.get(name) or f"FD[{name}]"


def absolute_spec(spec: str) -> str:
    """`spec` as it can be opened from any folder: a path made absolute, any other word as it is."""
    return str(Path(spec).expanduser().absolute()) if is_path(spec) else spec


def _is_openclip(spec: str) -> bool:
    return spec.startswith(OPENCLIP_PREFIX) or (spec in PUBLISHED and PUBLISHED[spec].openclip is not None)


def is_path(spec: str) -> bool:
    """Whether a word names a file: it has a slash, or ends as one."""
    endings = (".pt", ".ts", ".torchscript", _FEATURE_FILE)
    return "/" in spec or (not spec.startswith(OPENCLIP_PREFIX) and spec.endswith(endings))
