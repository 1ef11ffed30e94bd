"""A head that is gone ends the command, one that is there does not."""

import signal
import socket
import threading

import pytest

from cedm_ray.distributed import head
from cedm_ray.errors import TryAgainError


class Head:
    """A port that answers until it is lost. Then another is asked, which is bound and never listens: a port that is
    closed could be taken by any other program of the machine, and would answer again."""

    def __init__(self, listening: socket.socket, silent: socket.socket) -> None:
        self._now, self._silent = listening, silent

    def lose(self) -> None:
        self._now = self._silent

    def address(self) -> tuple[str, int]:
        return self._now.getsockname()


@pytest.fixture
def hurried(monkeypatch):
    """A head that is asked often."""
    monkeypatch.setattr(head, "_ASK_S", 0.05)
    monkeypatch.setattr(head, "_LOST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        found = Head(listening, silent)
        monkeypatch.setattr(head, "_listens", lambda address, asked=head._listens: asked(found.address()))
        monkeypatch.setattr(head, "_head_address", found.address)
        yield found


def watched(study, work):
    with head.head_watched(study):
        work()


def test_a_lost_head_ends_what_waits_for_it(hurried, study):
    def work():
        hurried.lose()
        threading.Event().wait(60)

    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(TryAgainError, match="has not answered") as caught:
        watched(study, work)
    assert caught.value.mend
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGUSR2) == before


def test_an_error_that_comes_of_the_loss_is_told_as_the_loss(hurried, study):
    def work():
        hurried.lose()
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
    hurried.lose()
    head._watch(study, threading.Event(), threading.Event())
    assert ended == [75]
    assert (study.path / "exit.json").exists()
