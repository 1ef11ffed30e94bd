"""Damaged input of every kind: nothing but our errors comes out, nothing hangs, and memory stays small.

3,000 images, 500 archives and 2,000 YAML files, each made from a good one by a few mutations that hypothesis draws from
a fixed seed. An example that takes more than 5 s, or makes the process grow by more than 512 MiB, fails.
"""

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

LIMIT_S = 5
LIMIT_BYTES = 512 * 2**20

settings.register_profile(
    "fuzz",
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


class Hung(BaseException):
    """No `except Exception` takes it for a bad image."""


def peak_bytes() -> int:
    """The most memory this process has held since `forget_peak`, or ever where Linux does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Fails where the test made the process grow by more than 512 MiB at any moment."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    yield
    grown = peak_bytes() - before
    print(f"grown by {grown / 2**20:.0f} MiB at the most")
    assert grown < LIMIT_BYTES


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """Ends what takes longer than 5 s: as soon as it comes back to Python."""

    def stop(*_) -> None:
        raise Hung

    # Of its own processor time, since others may be busy; and much longer by the clock, for what waits.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, LIMIT_S), (signal.SIGALRM, signal.ITIMER_REAL, 20 * LIMIT_S))
    previous = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, limit_s in timers:
        signal.setitimer(timer, limit_s)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, previous, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


EXTREMES = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x1f\x40", b"\x40\x1f\0\0"]


def _mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` after one to four changes. A quarter of them are in the first 64 bytes, where formats keep what they say
    of themselves."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not content:
            break
        spot = rng.integers(min(len(content), 64) if rng.random() < 0.25 else len(content))
        length = rng.integers(1, 40)
        how = rng.choice(["set", "extreme", "flip", "cut", "remove", "insert", "repeat"])
        if how == "set":
            content[spot : spot + 2] = rng.bytes(2)
        elif how == "extreme":
            content[spot : spot + 4] = EXTREMES[rng.integers(len(EXTREMES))]
        elif how == "flip":
            content[spot] ^= 1 << rng.integers(8)
        elif how == "cut":
            del content[spot:]
        elif how == "remove":
            del content[spot : spot + length]
        elif how == "insert":
            content[spot:spot] = rng.bytes(length)
        else:
            content[spot:spot] = content[spot : spot + length]
    return bytes(content)


@pytest.fixture
def quick() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Each example runs in one of these."""
    return _quick


@pytest.fixture
def mutated() -> Callable[[bytes, np.random.Generator], bytes]:
    return _mutated
