"""A head that is gone ends the command, one that is there does not."""

import signal
import socket
import threading

import pytest

from cedm_ray.distributed import head
from cedm_ray.errors import TryAgainError


@pytest.fixture
def hurried(monkeypatch):
    """A head at an address of the test's, asked often."""
    monkeypatch.setattr(head, "_ASK_S", 0.05)
    monkeypatch.setattr(head, "_LOST_S", 0.2)
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    monkeypatch.setattr(head, "_head_address", lambda: address)
    yield server
    server.close()


def watched(study, work):
    with head.head_watched(study):
        work()


def test_a_lost_head_ends_what_waits_for_it(hurried, study):
    def work():
        hurried.close()
        threading.Event().wait(60)

    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(TryAgainError, match="has not answered") as caught:
        watched(study, work)
    assert caught.value.mend
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGUSR2) == before


def test_an_error_that_comes_of_the_loss_is_told_as_the_loss(hurried, study):
    def work():
        hurried.close()
        try:
            threading.Event().wait(60)
        except BaseException:
            raise RuntimeError("Tune's own words") from None

    with pytest.raises(TryAgainError, match="has not answered"):
        watched(study, work)


def test_a_head_that_answers_disturbs_nothing_and_errors_pass(hurried, study):
    def work():
        assert not threading.Event().wait(1)
        raise KeyError("ours")

    with pytest.raises(KeyError):
        watched(study, work)


def test_a_command_that_hangs_for_want_of_the_head_is_ended_and_its_end_written_down(hurried, study, monkeypatch):
    ended = []
    monkeypatch.setattr(head, "_LEAVE_S", 0.1)
    monkeypatch.setattr(head.os, "_exit", ended.append)
    monkeypatch.setattr(head.signal, "pthread_kill", lambda *arguments: None)
    hurried.close()
    head._watch(study, threading.Event(), threading.Event())
    assert ended == [75]
    assert (study.path / "exit.json").exists()
