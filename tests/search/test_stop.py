"""A driver ends when it is asked to, from here and from elsewhere, and nobody else does."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from cedm_ray import lock
from cedm_ray.errors import TryAgainError
from cedm_ray.search.stop import driver_at_work, obeying, stop_driver
from cedm_ray.search.study import Study

DRIVE = textwrap.dedent("""
    import signal, sys, threading
    from pathlib import Path
    from cedm_ray.lock import exclusive_lock
    from cedm_ray.search.stop import obeying
    from cedm_ray.search.study import Study
    study = Study(Path(sys.argv[1]))
    def end(*_):
        raise SystemExit(143)
    if sys.argv[2] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, end)
    with exclusive_lock(study.lock) as held, obeying(study, held, poll_s=0.05):
        print("held", flush=True)
        threading.Event().wait()
""")


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path / "study")


@pytest.fixture
def drive(study):
    """Start a process that drives the study; it is gone at the end."""
    running = []

    def start(hearing: str = "hears") -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVE, str(study.path), hearing]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        running.append(process)
        assert process.stdout.readline() == "held\n"
        # A child that ended is to be gone, as it is for a driver that was started from a shell.
        threading.Thread(target=process.wait, daemon=True).start()
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def test_where_nobody_drives_there_is_nothing_to_stop(study):
    assert driver_at_work(study) is None
    assert stop_driver(study, timeout_s=1) is None


def test_the_driver_of_this_machine_ends_by_a_signal(study, drive):
    driver = drive()
    assert driver_at_work(study).process == driver.pid
    assert stop_driver(study, timeout_s=60, poll_s=0.01).process == driver.pid
    assert driver.wait(60) == 143
    assert not (study.path / "stop.json").exists()
    assert driver_at_work(study) is None


def test_the_driver_of_another_machine_ends_by_a_record(study, drive, monkeypatch):
    driver = drive()
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "another-machine")
    assert stop_driver(study, timeout_s=60, poll_s=0.01).process == driver.pid
    assert driver.wait(60) == 143
    assert (study.path / "stop.json").exists()


def test_a_request_that_nobody_took_up_stops_nobody_later(study, drive):
    study.ask_to_stop("0123456789abcdef")
    driver = drive()
    mark = lock.read_owner(study.lock).mark
    assert study.asked_to_stop("0123456789abcdef")
    assert not study.asked_to_stop(mark)
    assert driver.poll() is None


def test_one_that_does_not_end_is_named_with_what_ends_it(study, drive):
    driver = drive("deaf")
    with pytest.raises(TryAgainError, match="still drives") as caught:
        stop_driver(study, timeout_s=0.1, poll_s=0.01)
    assert caught.value.exit_code == 75
    assert f"kill -9 {driver.pid}" in caught.value.mend
    assert driver.poll() is None


def test_a_driver_is_told_once_and_the_thread_ends_with_the_block(study):
    told = []
    asked = threading.Event()

    def end() -> None:
        told.append(1)
        asked.set()

    with lock.exclusive_lock(study.lock) as held, obeying(study, held, poll_s=0.001, end=end):
        study.ask_to_stop(held.mark)
        assert asked.wait(60)
    assert told == [1]
    assert "cedm-ray-stop" not in {thread.name for thread in threading.enumerate()}


def test_a_damaged_request_asks_for_nothing(study):
    with lock.exclusive_lock(study.lock) as held:
        study.ask_to_stop(held.mark)
        (study.path / "stop.json").write_text("{")
        with obeying(study, held, poll_s=0.001, end=lambda: pytest.fail("nobody asked")):
            study.ask_to_stop("somebody else")
