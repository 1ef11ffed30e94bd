"""TensorBoard's own reader."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="session")
def read() -> Callable[[Path], EventAccumulator]:
    """Reads a run, told to keep everything, points that it would take for orphans included."""

    def reader(folder: Path) -> EventAccumulator:
        everything = {"scalars": 0, "images": 0, "tensors": 0}
        return EventAccumulator(str(folder), size_guidance=everything, purge_orphaned_data=False).Reload()

    return reader


@pytest.fixture(scope="session")
def points(read) -> Callable[[Path, str], list[tuple[int, float]]]:
    """The (step, value) of one curve."""
    return lambda folder, tag: [(event.step, event.value) for event in read(folder).Scalars(tag)]
