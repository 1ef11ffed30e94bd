"""A study's lock: who drives it, whether they still do, and how they are told from whoever has their number now.

The kernel keeps the lock (flock; on NFS it is the server's), so it ends with the process however that dies, and a dead
owner's lock is simply taken. The file's text only names the holder: a line for people, and one that identifies the
process and this one holding of the lock. A process that is merely stopped still holds it. Where a holder loses it all
the same (its machine hung and the server gave the lock away, or somebody removed the file), `refuse_if_overtaken`
refuses whatever it would write next.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cedm_ray.durable import storage_error
from cedm_ray.errors import LockedError

# A look at the lock (`is_held`) holds it for an instant, in which a driver must not be turned away.
_TRIES, _TRY_AGAIN_S = 5, 0.05
_FOR_PEOPLE = re.compile(r"process (\d+) on (\S+), started (\S+)")
_held: dict[str, "Lock"] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds a lock, or held it last.

    host, process: where it runs and its number there. started: when it took the lock, ISO 8601 in UTC. mark: random
    letters of this one holding; None in a lock of version 0.1. birth: what tells the process from others that had or
    get its number (`process_birth`); None where the system does not say.
    """

    host: str
    process: int
    started: str
    mark: str | None = None
    birth: str | None = None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, started {self.started}"

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine that runs now, and the very same one."""
        here = self.host == socket.gethostname() and self.birth is not None
        return here and process_birth(self.process) == self.birth


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held. mark: as `Owner.mark`."""

    path: Path
    mark: str
    descriptor: int

    def confirm(self) -> None:
        """Raise LockedError where the lock is another's by now: nothing may be written any more."""
        with contextlib.suppress(OSError):
            own, there = os.fstat(self.descriptor), self.path.stat()
            owner = read_owner(self.path)
            if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino) and owner and owner.mark == self.mark:
                return
        owner = read_owner(self.path)
        now = f"is driven by {owner} now" if owner is not None else "has lost its lock"
        raise LockedError(
            f"{self.path.parent.absolute()} {now}; this driver was overtaken and writes nothing more",
            mend="let the other one work; this command continues where the study stands",
        )


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[Lock]:
    """Hold `path` as the only driver. Raises LockedError naming the holder's host, process and start, StorageError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - it stays open as long as the lock is held.
    except OSError as error:
        raise storage_error(error, path, 0) from error
    with file:
        if not _locked(file.fileno()):
            holder = read_owner(path) or "another process"
            mend = "wait for it, or stop it: cedm-ray stop STUDY; this command continues where it stopped"
            raise LockedError(f"{path.parent.absolute()} is in use by {holder}", mend=mend) from None
        mark = secrets.token_hex(8)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        owner = Owner(host=socket.gethostname(), process=os.getpid(), started=started)
        file.truncate(0)
        # In one write, so that nobody reads half of it.
        file.write(f"{owner}\n{json.dumps({'mark': mark, 'birth': process_birth(os.getpid())})}\n")
        file.flush()
        lock = _held[os.path.abspath(path)] = Lock(path, mark, file.fileno())
        try:
            yield lock
        finally:
            del _held[os.path.abspath(path)]


def refuse_if_overtaken(path: Path) -> None:
    """Raise LockedError where this process holds the lock at `path`, as far as it knows, and another has it by now.

    A process that never took it may pass: tasks and readers work for whoever drives.
    """
    lock = _held.get(os.path.abspath(path))
    if lock is not None:
        lock.confirm()


def _locked(descriptor: int) -> bool:
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(_TRY_AGAIN_S)
        else:
            return True
    return False


def read_owner(path: Path) -> Owner | None:
    """Who holds the lock or held it last, by the file's text; None where it was never taken or cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    named = _FOR_PEOPLE.fullmatch(lines[0]) if lines else None
    if named is None:
        return None
    known = {}
    with contextlib.suppress(IndexError, ValueError):
        known = json.loads(lines[1])
    return Owner(
        process=int(named[1]), host=named[2], started=named[3], mark=known.get("mark"), birth=known.get("birth")
    )


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock now, whoever and wherever they are. False where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks: there can be no driver with one either.
        return False
    finally:
        os.close(descriptor)
    return False


def process_birth(process: int) -> str | None:
    """When a process of this machine began, as the boot's name and clock ticks since; None where no such process runs
    or the system does not say (only Linux does). No clock that can be set is in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold anything; after it come the state (3rd) and, as the 22nd, the start.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"
