"""What torch.save wrote, from whoever it comes: tensors and plain values are read, anything else is refused unread."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from cedm_ray.errors import InputDataError, SecurityError


def read_torch_file(path: Path, *, mend: str | None = None) -> Any:
    """The content of a file of torch.save on the CPU: a tensor, or dictionaries and lists of tensors and plain values.

    mend: what the user can do about a file that is refused. Raises InputDataError where the file is not there or is
    none, SecurityError where it holds other Python objects: reading those would run its code.
    """
    if not path.is_file():
        raise InputDataError(f"there is no file {path}", mend=mend)
    try:
        with warnings.catch_warnings():
            # Other versions of pickle are torch's own affair; what it cannot read ends in an error all the same.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SecurityError(
            f"{path} holds pickled Python objects other than tensors and was not read", mend=mend
        ) from None
    except Exception as error:
        # A file of anything else can end torch's reader in any way.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputDataError(f"{path} is not a file of torch.save: {reason}", mend=mend) from None
