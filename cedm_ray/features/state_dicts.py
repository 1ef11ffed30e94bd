"""Weights from a file into an architecture: only tensors are read, and every one of them has to have its place."""

import contextlib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from cedm_ray.data.torch_files import read_torch_file
from cedm_ray.errors import InputDataError

# What training programs wrap around the network that is meant, outermost first. A teacher is preferred to its student,
# as the authors of DINO and iBOT do; of MoCo-v3 it is the base encoder that its authors evaluate.
_CONTAINERS = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "teacher.", "base_encoder.", "backbone.", "encoder.", "model.")
_NAMED_KEYS = 3


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or of what torch.save wrote, by name, on the CPU.

    Of a training checkpoint those of the network: its teacher, or what it calls state_dict or model. Raises
    InputDataError where there are none, SecurityError where the file holds other Python objects than tensors and plain
    values: reading those would run its code.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path, device="cpu")
        except (OSError, safetensors.SafetensorError) as error:
            raise InputDataError(f"{path} is no file of weights: {error}") from None
    mend = "where you trust it, save its tensors alone, as .safetensors or with torch.save(network.state_dict())"
    content = read_torch_file(path, mend=mend)
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        inner = next((name for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    if not isinstance(content, Mapping) or not tensors:
        raise InputDataError(f"{path} holds no tensors by name, so it is no file of weights")
    return tensors


def unwrapped(tensors: Mapping[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """`tensors` without the prefixes that training programs put before a network's names.

    wanted: names of the architecture; as soon as one of them occurs nothing more is taken off. What lies outside a
    prefix that is taken off (a momentum encoder, a predictor) is another network's and is left out.
    """
    found = dict(tensors)
    while not any(name in wanted for name in found):
        for prefix in _PREFIXES:
            inside = {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}
            if inside:
                found = inside
                break
        else:
            break
    return found


def load_strictly(
    network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], path: Path, *, ignored: Collection[str] = ()
) -> None:
    """Put tensors into a timm network, which must have a place for each and get all of its own.

    ignored: names, or first parts of names, that the file may have and the network has not, such as a classifier.
    Names of another program's are brought to timm's by the filter that timm has for the architecture. Raises
    InputDataError naming what is missing, unexpected or of another shape.
    """
    wanted = network.state_dict()
    unwrapped_tensors = unwrapped(tensors, wanted)
    found = _without(unwrapped_tensors, wanted, ignored)
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rename is not None and not _fits(found, wanted):
        # The filter gets the ignored names as well: it tells another program's files by them. It is written for files
        # that belong to the network, and any other is better described as it stands.
        with contextlib.suppress(KeyError, RuntimeError, ValueError, AssertionError, AttributeError, TypeError):
            found = _without(rename(unwrapped_tensors, network), wanted, ignored)
    # A counter that older files do not have, and that no feature depends on.
    found |= {name: wanted[name] for name in wanted.keys() - found.keys() if name.endswith(".num_batches_tracked")}
    shapes = [
        f"{name} is {list(found[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    faults = [
        _listed("missing", [name for name in wanted if name not in found]),
        _listed("unexpected", [name for name in found if name not in wanted]),
        _listed("of another shape", shapes),
    ]
    if any(faults):
        raise InputDataError(
            f"{path} does not fit {type(network).__name__}: " + "; ".join(fault for fault in faults if fault),
            mend="name the file that belongs to this network",
        )
    network.load_state_dict(found, strict=True)


def _without(
    tensors: Mapping[str, torch.Tensor], wanted: Collection[str], ignored: Collection[str]
) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in tensors.items()
        if name in wanted or not any(name == part or name.startswith(f"{part}.") for part in ignored)
    }


def _fits(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    return tensors.keys() == wanted.keys() and all(tensors[name].shape == wanted[name].shape for name in wanted)


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED_KEYS} more" if len(names) > _NAMED_KEYS else ""
    return f"{what}: {', '.join(names[:_NAMED_KEYS])}{more}"
