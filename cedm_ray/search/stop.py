"""Ending the driver of a study from outside: from another terminal, and from another machine that sees its storage.

On the driver's own machine it is a SIGTERM to the very process that holds the study's lock. From anywhere else it is a
record in the study, which the driver looks for and then sends the same signal to itself, so that both ways end alike:
exit code 143, everything acknowledged saved, and the same command goes on.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from cedm_ray.errors import IntegrityError, TryAgainError
from cedm_ray.lock import Lock, Owner, is_held, read_owner
from cedm_ray.search.study import Study

POLL_S = 1.0
"""Seconds between two looks, of a driver for a request and of who asked for the lock."""


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def obeying(
    study: Study, lock: Lock, *, poll_s: float = POLL_S, end: Callable[[], None] = _end_this_process
) -> Iterator[None]:
    """Inside the block, call `end` once as soon as somebody asks the holder of `lock` to stop.

    A thread looks every `poll_s` seconds, so that a request is heard in every phase of a search. end: SIGTERM to this
    process by default.
    """
    over = threading.Event()

    def look() -> None:
        while not over.wait(poll_s):
            # Storage that is out of reach now may come back; a request that cannot be read asks for nothing.
            with contextlib.suppress(OSError, IntegrityError):
                if study.asked_to_stop(lock.mark):
                    end()
                    return

    thread = threading.Thread(target=look, name="cedm-ray-stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def driver_at_work(study: Study) -> Owner | None:
    """Who drives the study now, on whatever machine; None where nobody does."""
    return read_owner(study.lock) if is_held(study.lock) else None


def stop_driver(study: Study, *, timeout_s: float, poll_s: float = POLL_S / 5) -> Owner | None:
    """End the study's driver and wait until the study is free. Returns who it was; None where nobody drove.

    Raises TryAgainError where it has not ended after `timeout_s` seconds, StorageError where it runs elsewhere and the
    request cannot be written.
    """
    owner = driver_at_work(study)
    if owner is None:
        return None
    if not _signalled(owner):
        if owner.mark is None:
            mend = f"end it there: kill {owner.process}"
            raise TryAgainError(f"{owner} takes no requests: it is of an older version", mend=mend)
        study.ask_to_stop(owner.mark)
    until = time.monotonic() + timeout_s
    while _is_there(study, owner):
        if time.monotonic() > until:
            raise TryAgainError(
                f"{owner} has been asked to stop and still drives {study.path.absolute()} after {timeout_s:g} s",
                mend=f"wait and look with cedm-ray status; if it hangs, end it there: kill -9 {owner.process}",
            )
        time.sleep(poll_s)
    return owner


def _signalled(owner: Owner) -> bool:
    """Whether the owner is a process of this machine that took the signal: the very one, and ours to signal."""
    if not owner.is_here:
        return False
    try:
        os.kill(owner.process, signal.SIGTERM)
    except OSError:
        return False
    return True


def _is_there(study: Study, owner: Owner) -> bool:
    """Whether the owner still holds the lock, or still runs here: how it ended it writes down after letting go."""
    now = driver_at_work(study)
    return owner.is_here or (now is not None and now.mark == owner.mark)
