import os

import pytest

from cedm_ray.data.files import read_file
from cedm_ray.data.limits import LIMITS, Limits


def test_a_regular_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 40)
    assert read_file(tmp_path / "a", Limits(max_file_bytes=10_240)) == bytes(range(256)) * 40
    assert (
        read_file(str(tmp_path / "a"), Limits(max_file_bytes=10_239))
        == "10,240 bytes are more than images.max_file_bytes (10,239)"
    )


def test_a_system_that_gives_less_than_it_is_asked_for_is_asked_again(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"0123456789")
    real = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, length: real(descriptor, min(length, 3)))
    assert read_file(tmp_path / "a", LIMITS) == b"0123456789"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing"])
def test_nothing_else_is_read_and_no_file_stays_open(kind, tmp_path):
    path = tmp_path / kind
    if kind == "link":
        (tmp_path / "a").write_bytes(b"x")
        path.symlink_to("a")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    reasons = {"link": "Too many levels of symbolic links", "nothing": "No such file or directory"}
    assert read_file(path, LIMITS) == reasons.get(kind, "not a regular file")
    assert len(os.listdir("/proc/self/fd")) == before
