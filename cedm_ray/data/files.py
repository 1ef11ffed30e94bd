"""Regular files, read whole."""

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # A worker reads files and needs no more than the limit's value (`decoding.py`).
    from cedm_ray.data.limits import Limits


def read_file(path: Path | str, limits: "Limits") -> bytes | str:
    """The content of a regular file, or the reason why it is not read."""
    try:
        # What was a regular file when it was listed may be a link or a FIFO by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return "not a regular file"
            if status.st_size > limits.max_file_bytes:
                from cedm_ray.data.limits import too_large

                return too_large(status.st_size, limits)
            content = os.read(descriptor, status.st_size)
            # A network's file system may give less than it is asked for.
            while len(content) < status.st_size and (more := os.read(descriptor, status.st_size - len(content))):
                content += more
            return content
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error)
