"""Checkpoints written while training goes on.

Training is held up for a copy of its state to the host; packing, hashing and the disk are a thread's. There is one
write at a time: the next checkpoint waits for the one before, and so do the report of a rung and the end of a trial,
which therefore are never acknowledged before what they rest on is durable. A death repeats what was trained since the
last checkpoint that was finished: at most two intervals, and one where writing is faster than training.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from cedm_ray.diffusion.state import TrainState
from cedm_ray.search.model import Meaning, Snapshot, save_checkpoint


class CheckpointWriter:
    """Writes the checkpoints of one trial in the background.

    parent: the folder that they lie in. keep: how many are kept. blocked_s: seconds that `save` and `wait` have held
    their caller up so far. As a context manager it waits at the end; where an error ends it, that error stays the one
    that is raised.
    """

    def __init__(self, parent: Path, meaning: Meaning, keep: int) -> None:
        self.parent = parent
        self.meaning = meaning
        self.keep = keep
        self.blocked_s = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState) -> None:
        """Begin to write the state as it is now, once the write before is done. Raises what that one raised."""
        self.wait()
        started = time.monotonic()
        snapshot = Snapshot.take(state)
        self._pending = self._thread.submit(save_checkpoint, self.parent, snapshot, self.meaning, self.keep)
        self.blocked_s += time.monotonic() - started

    def wait(self) -> None:
        """Until everything saved is durable. Raises StorageError where it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            started = time.monotonic()
            try:
                pending.result()
            finally:
                self.blocked_s += time.monotonic() - started

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            # Finishes the write that is under way, whatever ended the trial: it is of a sound state.
            self._thread.shutdown()
