"""A local TorchScript file as an extractor: uint8 [B, 3, H, W] -> float [B, D], with whatever transform it holds.

TorchScript carries its own code in a restricted language, so that a file needs none of ours and runs none of Python's.
"""

import contextlib
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from cedm_ray.config import digest
from cedm_ray.durable import sha256_file
from cedm_ray.errors import InputDataError, SecurityError
from cedm_ray.features.network import NetworkExtractor, try_out, weight_bytes


def open_torchscript(path: Path, name: str, size: int, device: torch.device) -> NetworkExtractor:
    """The network in a file, tried out on images of `size`. Raises InputDataError and SecurityError."""
    network = load_torchscript(path, device)
    mend = "the file must be TorchScript that maps uint8 [B, 3, H, W] to float [B, D]"
    return NetworkExtractor(
        name=name,
        dim=try_out(network, size, device, f"the network in {path}", mend),
        key=digest({"kind": "torchscript", "weights": sha256_file(path), "transform": "its own"}),
        device=device,
        forward=network,
        weight_bytes=weight_bytes(network),
    )


def load_torchscript(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Read a TorchScript file. Raises InputDataError where it is none, SecurityError where it is a pickle."""
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
