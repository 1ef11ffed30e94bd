"""timm's networks as extractors: those of the paper's table, any other by its name, and an architecture with a file.

Shapes: B batch, S image side, D feature width, G patches a side.
"""

import difflib
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F

from cedm_ray.config import digest
from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.features.network import NetworkExtractor, Transform, hash_weights, try_out, weight_bytes
from cedm_ray.features.published import IMAGENET_224, PublishedNetwork
from cedm_ray.features.state_dicts import load_strictly, read_tensors, unwrapped
from cedm_ray.features.weight_files import fetch, given_file, hub_file, unreachable

_HUB_NAMES = ("model.safetensors", "pytorch_model.bin")


def open_published(
    row: PublishedNetwork, name: str, size: int, device: torch.device, weights: Path | None
) -> NetworkExtractor:
    """A timm row of the paper's table. weights: a file to take instead of the published one; None = that.

    Raises InputDataError where the weights are not to be had or do not fit, SecurityError for a pickle.
    """
    import timm

    if weights is not None:
        path = given_file(weights)
    elif row.file is not None:
        path = fetch(row.file, row.title)
    else:
        path = _hub_weights(row.timm, row.title)
    # DINOv2's models in timm are made for 518 pixels; the others know no other side than this one.
    network = timm.create_model(row.timm, pretrained=False, num_classes=0, img_size=IMAGENET_224.side).eval()
    tensors = unwrapped(read_tensors(path), network.state_dict())
    if row.dinov2_positions and "pos_embed" in tensors:
        tensors["pos_embed"] = dinov2_positions(tensors["pos_embed"], network.patch_embed.grid_size[0])
    load_strictly(network, tensors, path, ignored=row.ignored)
    return _extractor(network.to(device), row.timm, name, IMAGENET_224, size, device)


def dinov2_positions(embedding: torch.Tensor, grid: int) -> torch.Tensor:
    """A position embedding [1, 1 + G * G, D] for `grid` patches a side, as DINOv2's own code makes it.

    Bicubic and not antialiased, at a scale of (grid + 0.1) / G: the authors' features, and the published Fréchet DINOv2
    distances with them, are those of this scale. timm's own resampling is antialiased and gives others.
    """
    side = round((embedding.shape[1] - 1) ** 0.5)
    if side == grid or side * side != embedding.shape[1] - 1:
        return embedding
    patches = embedding[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / side
    patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([embedding[:, :1].float(), patches.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], dim=1)


def open_timm(model: str, name: str, size: int, device: torch.device, weights: Path | None) -> NetworkExtractor:
    """A timm model without its classifier: its pooled features under its own transform.

    weights: a file of the architecture's tensors; None = the pretrained ones. Raises ConfigurationError for a name that
    timm has not, and as `open_published`.
    """
    import timm

    _check_known(model, pretrained=weights is None)
    if weights is None:
        network = _pretrained(model)
    else:
        path = given_file(weights)
        network = timm.create_model(model, pretrained=False, num_classes=0)
        load_strictly(network, read_tensors(path), path, ignored=_classifiers(network))
    network = network.eval().to(device)
    settings = timm.data.resolve_model_data_config(network)
    transform = Transform(
        side=settings["input_size"][-1],
        interpolation=settings["interpolation"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    return _extractor(network, model, name, transform, size, device)


def _extractor(
    network: torch.nn.Module, model: str, name: str, transform: Transform, size: int, device: torch.device
) -> NetworkExtractor:
    def forward(images: torch.Tensor) -> torch.Tensor:
        return network(transform(images))

    key = {"kind": "timm", "model": model, "weights": hash_weights(network), "transform": transform.to_plain()}
    return NetworkExtractor(
        name=name,
        dim=try_out(forward, size, device, f"the timm model {model}", "name another extractor"),
        key=digest(key),
        device=device,
        forward=forward,
        weight_bytes=weight_bytes(network),
    )


def _check_known(model: str, *, pretrained: bool) -> None:
    import timm

    known = timm.list_pretrained() if pretrained else timm.list_models()
    if model in known or model in {full.split(".")[0] for full in known}:
        return
    if not pretrained and timm.is_model(model):
        return
    near = difflib.get_close_matches(model, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigurationError(
        f"features.extractor: {model} is no {'pretrained ' if pretrained else ''}timm model{hint}",
        mend="name another, or pixels, inception, dinov2, or the path of a TorchScript file (with a slash)",
    )


def _classifiers(network: torch.nn.Module) -> tuple[str, ...]:
    named = network.pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _hub_weights(model: str, what: str) -> Path:
    """The file of a timm model's pretrained weights, by the full name of model and tag."""
    import timm

    config = timm.get_pretrained_cfg(model)
    names = _HUB_NAMES
    if config.hf_hub_filename:
        # As timm does it: the safetensors file of the same content is taken where there is one.
        safe = {"open_clip_pytorch_model.bin": ("open_clip_model.safetensors",)}.get(config.hf_hub_filename, ())
        names = (*safe, config.hf_hub_filename)
    return hub_file(config.hf_hub_id, names, kept_as=f"{config.architecture}.{config.tag}".rstrip("."), what=what)


def _pretrained(model: str) -> torch.nn.Module:
    import timm

    config = timm.get_pretrained_cfg(model)
    if config.hf_hub_id and not config.custom_load:
        path = _hub_weights(model, f"the timm model {model}")
        try:
            return timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(path)})
        except (OSError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputDataError(
                f"{path} does not fit the timm model {model}: {reason}", mend="remove it to have it downloaded again"
            ) from None
    # A few have formats of their own, which timm finds and reads itself.
    reason = unreachable(config.url or "https://huggingface.co")
    if reason is None:
        try:
            return timm.create_model(model, pretrained=True, num_classes=0)
        except (OSError, RuntimeError) as error:
            reason = error
    first_line = str(reason).strip().partition("\n")[0]
    raise InputDataError(
        f"the weights of the timm model {model} cannot be downloaded: {first_line}",
        mend="name another timm model, or the path of a TorchScript file",
    )
