"""OpenCLIP's networks: embeddings of images and of texts in one space. Needs the extra `clip`.

`openclip:MODEL:TAG` names one, with the words of `open_clip.list_pretrained()`; `openclip:MODEL` with a weight file.
The image embedding is what comes after the projection, as OpenCLIP's `encode_image` gives it, not brought to unit
length. (timm has the image towers under names of its own, but gives the wider features before the projection.)

Shapes: B batch, S image side, T texts, D embedding width.
Source: method.md 1.1 and 3.6.
"""

import contextlib
import difflib
import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import torch

from cedm_ray.config import digest
from cedm_ray.errors import ConfigurationError, InputDataError, SecurityError
from cedm_ray.features.network import NetworkExtractor, Transform, hash_weights, try_out, weight_bytes
from cedm_ray.features.weight_files import WebFile, fetch, given_file, hub_file

PREFIX = "openclip:"
_TEXTS_AT_ONCE = 256
_HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClip:
    """One network with both its sides. images: its image embedding as an extractor."""

    images: NetworkExtractor
    model: torch.nn.Module
    tokenizer: Any

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """The embeddings of texts, float32 [T, D], not brought to unit length. Longer texts than its context are cut,
        as OpenCLIP's tokenizer does."""
        if not texts:
            raise ValueError("texts must not be empty")
        found = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = self.tokenizer(list(texts[start : start + _TEXTS_AT_ONCE]))
            found.append(self.model.encode_text(tokens.to(self.images.device)).float().cpu())
        return torch.cat(found).numpy()


def open_openclip(
    model: str, tag: str | None, name: str, size: int, device: torch.device, weights: Path | None = None
) -> OpenClip:
    """The OpenCLIP model `model` with the pretrained weights `tag`, or with those of a file.

    tag: also says how images are normalized; None with `weights` = as OpenAI's. Raises ConfigurationError where the
    extra is not installed or a name is unknown, InputDataError where the weights are not to be had or do not fit,
    SecurityError for a file that holds more than tensors.
    """
    open_clip = _package()
    settings = _settings(open_clip, model, tag, weights)
    path = _find_weights(settings, model, tag, weights)
    with _quiet():
        try:
            network = open_clip.create_model(
                model, pretrained=str(path), force_preprocess_cfg=settings, weights_only=True
            )
        except pickle.UnpicklingError:
            raise SecurityError(
                f"{path} holds pickled Python objects other than tensors and was not read",
                mend="where you trust it, save its tensors alone, as .safetensors",
            ) from None
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            # The names of missing and unexpected tensors come on the lines after torch's first.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise InputDataError(f"{path} does not fit OpenCLIP's {model}: {' '.join(lines[:3])[:500]}") from None
        network = network.eval().to(device)
        tokenizer = open_clip.get_tokenizer(model)
    seen = open_clip.get_model_preprocess_cfg(network)
    side = seen["size"] if isinstance(seen["size"], int) else seen["size"][0]
    transform = Transform(
        side=side, interpolation=seen["interpolation"], mean=tuple(seen["mean"]), std=tuple(seen["std"])
    )

    def forward(images: torch.Tensor) -> torch.Tensor:
        return network.encode_image(transform(images))

    key = {
        "kind": "openclip",
        "model": model,
        "weights": hash_weights(network.visual),
        "transform": transform.to_plain(),
    }
    images = NetworkExtractor(
        name=name,
        dim=try_out(forward, size, device, f"OpenCLIP's {model}", "name another extractor"),
        key=digest(key),
        device=device,
        forward=forward,
        weight_bytes=weight_bytes(network),
    )
    return OpenClip(images=images, model=network, tokenizer=tokenizer)


def _package() -> ModuleType:
    try:
        import open_clip
    except ImportError:
        raise ConfigurationError(
            "OpenCLIP is not installed", mend="pip install 'cedm-ray[clip]', or pip install open_clip_torch"
        ) from None
    return open_clip


def _settings(open_clip: ModuleType, model: str, tag: str | None, weights: Path | None) -> dict[str, Any]:
    """What OpenCLIP says about a pair of model and tag: its place, its normalization; {} without a tag."""
    config = open_clip.get_model_config(model)
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigurationError(f"features.extractor: {model} is no OpenCLIP model{hint}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag is None and weights is None:
        example = f", for instance {PREFIX}{model}:{tags[0]}" if tags else ""
        raise ConfigurationError(
            f"features.extractor: {PREFIX}{model} does not say which weights",
            mend=f"add a tag{example}, or name a file with features.weights",
        )
    if tag is None:
        return {}
    settings = open_clip.pretrained.get_pretrained_cfg(model, tag)
    if not settings:
        raise ConfigurationError(
            f"features.extractor: OpenCLIP has no weights {tag} of {model}; it has {', '.join(tags) or 'none'}"
        )
    if bool(settings.get("quick_gelu", False)) != bool(config.get("quick_gelu", False)):
        other = model.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{model}-quickgelu"
        raise ConfigurationError(
            f"features.extractor: the weights {tag} were trained with another GELU than {model} has",
            mend=f"name {PREFIX}{other}:{tag}",
        )
    return dict(settings)


def _find_weights(settings: dict[str, Any], model: str, tag: str | None, weights: Path | None) -> Path:
    if weights is not None:
        return given_file(weights)
    what = f"OpenCLIP's {model} ({tag})"
    if settings.get("hf_hub"):
        place = PurePosixPath(settings["hf_hub"])
        # A place that ends in a slash names the repository alone.
        if settings["hf_hub"].endswith("/"):
            return hub_file(str(place), _HUB_NAMES, kept_as=f"openclip-{model}-{tag}", what=what)
        safe = place.with_suffix(".safetensors").name
        return hub_file(str(place.parent), (safe, place.name), kept_as=f"openclip-{model}-{tag}", what=what)
    url = settings["url"]
    return fetch(WebFile(name=f"openclip-{model}-{tag}{PurePosixPath(url).suffix}", url=url), what)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCLIP, which logs through the root logger, from setting up logging for the whole program."""
    handler, root = logging.NullHandler(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
