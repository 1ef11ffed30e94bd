"""The TensorFlow Inception-v3 of the Fréchet Inception distance, as the TorchScript file that clean-fid uses too.

    inception        the network resizes to 299 pixels itself, bilinearly and without antialiasing, as TensorFlow 1 did:
                     what the published distances of EDM and C-EDM were computed with (clean-fid's `legacy_tensorflow`)
    inception_clean  images are resized to 299 pixels before it, bicubically and antialiased, in floating point and
                     without rounding (clean-fid's `clean`); its distances are others and must not be called FID

Both give pool3, D = 2048. The classifier of the same file gives the class probabilities of the inception score.

Shapes: B batch, S image side, D feature width, K classes.
Source: method.md 4.1; Parmar et al. 2022 (clean-fid). The SHA-256 of the file is the one that k-diffusion and other
public evaluations pin for the same address.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from cedm_ray.config import digest
from cedm_ray.durable import sha256_file
from cedm_ray.errors import InputDataError
from cedm_ray.features.network import NetworkExtractor, try_out, weight_bytes
from cedm_ray.features.torchscript import load_torchscript
from cedm_ray.features.weight_files import WebFile, check_sha256, fetch, given_file

INCEPTION = WebFile(
    name="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
INCEPTION_DIM = 2048
_SIDE = 299
_MEND = f"name a copy of {INCEPTION.url}, or no file, so that it is downloaded; another network is a --detector"


def open_inception(device: torch.device, weights: Path | None, *, clean: bool = False) -> NetworkExtractor:
    """Inception-v3's pool3 features, D = 2048. clean: which of the two resizes of the module's docstring.

    weights: the file; None = the user's cache folder, downloaded if need be. Raises InputDataError where it is not to
    be had or is not this network, IntegrityError where a file of the published name is not the published one.
    """
    path, network = _load(device, weights)

    def legacy(images: torch.Tensor) -> torch.Tensor:
        return network(images.float(), return_features=True)

    def cleanly_resized(images: torch.Tensor) -> torch.Tensor:
        return network.layers((clean_resize(images) - 128) / 128).flatten(1)

    forward = cleanly_resized if clean else legacy
    dim = try_out(forward, _SIDE, device, f"the network in {path}", _MEND)
    if dim != INCEPTION_DIM:
        raise InputDataError(
            f"the network in {path} gives {dim} features, Inception-v3 gives {INCEPTION_DIM}", mend=_MEND
        )
    key = {"kind": "inception", "weights": sha256_file(path), "transform": "clean" if clean else "inside"}
    name = "inception_clean" if clean else "inception"
    return NetworkExtractor(
        name=name,
        dim=dim,
        key=digest(key),
        device=device,
        forward=forward,
        weight_bytes=weight_bytes(network),
    )


def open_inception_classifier(device: torch.device, weights: Path | None = None) -> NetworkExtractor:
    """Inception-v3's class probabilities for the inception score: uint8 [B, 3, S, S] -> float32 [B, K], rows sum to 1.

    The network resizes itself, as `inception`. Its softmax leaves out the biases of the last layer, as the original
    inception score does. Raises as `open_inception`.
    """
    path, network = _load(device, weights)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return network(images.float(), no_output_bias=True)

    dim = try_out(forward, _SIDE, device, f"the network in {path}", _MEND)
    with torch.inference_mode():
        sums = forward(torch.zeros(1, 3, _SIDE, _SIDE, dtype=torch.uint8, device=device)).sum(1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise InputDataError(f"the network in {path} does not give probabilities: they sum to {float(sums[0]):g}")
    key = digest({"kind": "inception probabilities", "weights": sha256_file(path), "transform": "inside"})
    return NetworkExtractor(name="inception_probabilities", dim=dim, key=key, device=device, forward=forward)


def clean_resize(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, S, S] -> float32 [B, 3, 299, 299] in [0, 255]: clean-fid's resize, on the images' own device.

    Pillow's bicubic filter on floating-point values is torch's with antialiasing, to 0.005 of the 256 levels.
    """
    values = images.float()
    if values.shape[-1] == _SIDE:
        return values
    return F.interpolate(values, size=(_SIDE, _SIDE), mode="bicubic", antialias=True).clamp(0, 255)


def _load(device: torch.device, weights: Path | None) -> tuple[Path, torch.jit.ScriptModule]:
    if weights is None:
        path = fetch(INCEPTION, "Inception-v3")
    else:
        path = given_file(weights)
        # Under its published name a file's distance is called FID, so that it must be that file.
        if path.name == INCEPTION.name:
            check_sha256(path, INCEPTION.sha256, "give it another name, which the numbers will then carry")
    return path, load_torchscript(path, device)
