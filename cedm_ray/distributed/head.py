"""Notice that the head of the cluster is gone, before Ray ends this process for it.

Ray tries for a minute to reach the head again and then ends the driver from C++: with exit code 1, without an
exception and without a word to us. Here a thread asks whether anything listens where the head did, and the command ends
in its own way, with what it acknowledged on disk, and says that trying again may help (exit code 75).
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import ray

from cedm_ray.errors import TryAgainError
from cedm_ray.search.study import Study

_ASK_S, _LOST_S, _LEAVE_S = 2.0, 20.0, 15.0
"""How often the head is asked, how long it may be silent, and how long the command may then take to end by itself."""
_MEND = "start the cluster again and run the same command: it continues where it stopped"


class _HeadLostError(BaseException):
    """Raised in the main thread. Not an Exception, which Tune would take for one of a trial's."""


@contextlib.contextmanager
def head_watched(study: Study) -> Iterator[None]:
    """Raise TryAgainError out of the block once the head of the cluster that it is connected to is lost.

    Whatever hangs for want of the head is left behind: where the block does not end within seconds, the process is
    ended, and `exit.json` says so all the same. Outside the main thread, which alone can be interrupted, nothing is
    watched.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    lost, left = threading.Event(), threading.Event()
    before = signal.signal(signal.SIGUSR2, _raise)
    thread = threading.Thread(target=_watch, args=(study, lost, left), name="head-watch", daemon=True)
    thread.start()
    try:
        yield
    except (_HeadLostError, Exception) as error:
        if not lost.is_set():
            raise
        raise TryAgainError(_text(), mend=_MEND) from error
    finally:
        left.set()
        signal.signal(signal.SIGUSR2, before)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise _HeadLostError


def _text() -> str:
    return f"the head of the Ray cluster has not answered for {_LOST_S:g} s"


def _watch(study: Study, lost: threading.Event, left: threading.Event) -> None:
    address, answered = None, time.monotonic()
    while not left.wait(_ASK_S):
        address = address or _head_address()
        if address is None or _listens(address):
            answered = time.monotonic()
        elif time.monotonic() - answered > _LOST_S:
            break
    if left.is_set():
        return
    lost.set()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)
    if not left.wait(_LEAVE_S):
        with contextlib.suppress(Exception):
            study.write_exit(TryAgainError.exit_code, _text())
        print(f"error: {_text()}\n  to mend it: {_MEND}", file=sys.stderr, flush=True)
        os._exit(TryAgainError.exit_code)


def _head_address() -> tuple[str, int] | None:
    """Where the head of the connected cluster listens; None while there is no connection."""
    if not ray.is_initialized():
        return None
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5.0).close()
    except OSError:
        return False
    return True
