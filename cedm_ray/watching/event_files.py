"""EventFile: the curves of one TensorBoard run, written only where they are new; a resumed run has no point twice.

TensorBoard reads all event files of a run's folder in the order of their names and shows what they say together. Each
process that adds to a run writes a file of its own; what the earlier ones hold decides what is new. A record goes to
the operating system in one piece as soon as it is written, so that a killed process loses nothing of what it told.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from cedm_ray import durable
from cedm_ray.data.pictures import png, sample_grid

_VERSION = "brain.Event:2"
_INFIX = "tfevents"
_RGBA = 4


def last_steps(folder: Path) -> dict[str, int]:
    """The last step of every tag of a run. What a killed process left half-written at a file's end is passed over."""
    found: dict[str, int] = {}
    for path in _event_files(folder):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[value.tag] = max(event.step, found.get(value.tag, event.step))
    return found


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*.{_INFIX}.*"))


class EventFile:
    """Adds to a run. Steps of a tag are to rise; one that does not go beyond the tag's last is known and not written.

    folder: of the run. Nothing is made before there is something to write. Use it as a context manager, or close it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._last = last_steps(self.folder)
        self._file: BinaryIO | None = None

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def has(self, tag: str) -> bool:
        """Whether the run says anything under a tag."""
        return tag in self._last

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """A point of several curves; None is no point. Raises StorageError, as all that writes."""
        found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
        self.write(step, found)

    def grid(self, tag: str, step: int, images: np.ndarray, *, columns: int) -> None:
        """Images uint8 [n, 3, S, S] as one picture, in rows of `columns`."""
        picture = sample_grid(images, columns)
        image = Summary.Image(
            encoded_image_string=png(picture), width=picture.width, height=picture.height, colorspace=_RGBA
        )
        self.write(step, [Summary.Value(tag=tag, image=image)])

    def write(self, step: int, values: list[Summary.Value]) -> None:
        """Values of any kind at a step, of which those that are known are left out."""
        new = [value for value in values if step > self._last.get(value.tag, -1)]
        if not new:
            return
        try:
            if self._file is None:
                self._open()
            self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=new)))
        except OSError as error:
            raise durable.storage_error(error, self.folder, 0) from error
        self._last.update((value.tag, step) for value in new)

    def close(self) -> None:
        """Nothing more is written."""
        if self._file is not None:
            # What cannot be written now could not be written before, and was told then.
            with contextlib.suppress(OSError):
                self._file.close()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A number and not the time, as TensorBoard itself does it: clocks can be set back.
        number = len(_event_files(self.folder)) + 1
        name = f"events.{_INFIX}.{number:06d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(self.folder / name, "xb")  # noqa: SIM115 - it stays open as long as the run.
        self._append(Event(wall_time=time.time(), file_version=_VERSION))

    def _append(self, event: Event) -> None:
        RecordWriter(self._file).write(event.SerializeToString())
        self._file.flush()
