"""The lock: one holder, named; a dead one's is taken; a paused and overtaken one is refused."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cedm_ray import lock
from cedm_ray.errors import LockedError

HOLD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from cedm_ray.errors import LockedError
    from cedm_ray.lock import exclusive_lock
    with exclusive_lock(Path(sys.argv[1])) as held:
        print("held", flush=True)
        for line in sys.stdin:
            try:
                held.confirm()
                print("mine", flush=True)
            except LockedError as error:
                print(error, flush=True)
""")


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path/driver.lock and says at each line whether it still does."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "driver.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, cwd=Path(__file__).parents[1], **pipes)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def ask(holder) -> str:
    holder.stdin.write("\n")
    holder.stdin.flush()
    return holder.stdout.readline()


def test_a_second_driver_is_refused_by_name_and_a_dead_owner_is_overtaken(holder, tmp_path):
    path = tmp_path / "driver.lock"
    with pytest.raises(LockedError, match=f"process {holder.pid} on ") as caught, lock.exclusive_lock(path):
        pass
    assert caught.value.exit_code == 6
    holder.kill()
    holder.wait()
    with lock.exclusive_lock(path):
        assert f"process {os.getpid()} " in path.read_text()


def test_whoever_holds_it_is_known_from_outside_and_by_its_birth(holder, tmp_path):
    path = tmp_path / "driver.lock"
    owner = lock.read_owner(path)
    assert (owner.process, owner.host) == (holder.pid, socket.gethostname())
    assert lock.is_held(path)
    assert owner.is_here
    # The kernel's own figure, by another way than ours: the 22nd field, after a name without blanks.
    ticks = Path(f"/proc/{holder.pid}/stat").read_text().split()[21]
    assert owner.birth.endswith(f"/{ticks}")
    holder.kill()
    holder.wait()
    assert not lock.is_held(path)
    assert not owner.is_here
    assert lock.read_owner(path) == owner


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    path = tmp_path / "driver.lock"
    with lock.exclusive_lock(path):
        people, machine = path.read_text().splitlines()
        known = json.loads(machine)
    path.write_text(people + "\n" + json.dumps({**known, "birth": known["birth"] + "0"}))
    assert not lock.read_owner(path).is_here
    path.write_text(people.replace(socket.gethostname(), "elsewhere") + "\n" + machine)
    assert not lock.read_owner(path).is_here


def test_a_paused_holder_keeps_the_lock(holder, tmp_path):
    """Fault 13, first half."""
    holder.send_signal(signal.SIGSTOP)
    try:
        assert lock.is_held(tmp_path / "driver.lock")
        with pytest.raises(LockedError), lock.exclusive_lock(tmp_path / "driver.lock"):
            pass
    finally:
        holder.send_signal(signal.SIGCONT)
    assert ask(holder) == "mine\n"


@pytest.mark.parametrize("how", ["removed", "rewritten", "lost"])
def test_an_overtaken_holder_is_told_so(holder, tmp_path, how):
    """Fault 13, second half. removed: by a person. rewritten: a file server gave the lock to another machine, which
    wrote its name into the same file. lost: there is no file at all."""
    path = tmp_path / "driver.lock"
    assert ask(holder) == "mine\n"
    if how == "rewritten":
        path.write_text('process 7 on elsewhere, started 2026-01-01T00:00:00+00:00\n{"mark": "x", "birth": "y"}\n')
        assert "is driven by process 7 on elsewhere" in ask(holder)
        return
    path.unlink()
    if how == "lost":
        assert "has lost its lock" in ask(holder)
        return
    with lock.exclusive_lock(path):
        assert f"is driven by process {os.getpid()} on " in ask(holder)


def test_only_who_took_a_lock_can_be_overtaken(tmp_path):
    path = tmp_path / "driver.lock"
    lock.refuse_if_overtaken(path)
    with lock.exclusive_lock(path):
        lock.refuse_if_overtaken(path)
        path.unlink()
        with pytest.raises(LockedError, match="overtaken"):
            lock.refuse_if_overtaken(path)
    lock.refuse_if_overtaken(path)


def test_a_look_at_the_lock_turns_no_driver_away(tmp_path, monkeypatch):
    """A look holds the lock for an instant; it is over when the driver tries again."""
    path = tmp_path / "driver.lock"
    path.touch()
    looking = os.open(path, os.O_RDONLY)
    lock.fcntl.flock(looking, lock.fcntl.LOCK_SH)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: lock.fcntl.flock(looking, lock.fcntl.LOCK_UN))
    with lock.exclusive_lock(path):
        assert lock.is_held(path)
    os.close(looking)


@pytest.mark.parametrize("text", ["", "nonsense\n", "process 12 on here\n", b"\xff\xfe"])
def test_a_lock_without_a_name_names_nobody(tmp_path, text):
    path = tmp_path / "driver.lock"
    assert lock.read_owner(path) is None
    assert not lock.is_held(path)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert lock.read_owner(path) is None


def test_a_lock_of_version_0_1_names_its_owner_and_nothing_more(tmp_path):
    path = tmp_path / "driver.lock"
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}, started 2026-01-01T00:00:00+00:00\n")
    owner = lock.read_owner(path)
    assert (owner.process, owner.mark, owner.birth) == (os.getpid(), None, None)
    assert not owner.is_here
