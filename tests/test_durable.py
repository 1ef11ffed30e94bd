"""durable.py against the faults it exists for: kills, truncation, flipped bits, full storage."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.errors import IntegrityError, StorageError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_bytes_are_read_back_and_nothing_else_is_left(tmp_path):
    durable.write_bytes(tmp_path / "a" / "x", b"one")
    durable.write_bytes(tmp_path / "a" / "x", b"two")
    assert (tmp_path / "a" / "x").read_bytes() == b"two"
    assert names(tmp_path / "a") == ["x"]


def test_many_files_are_written_like_one(tmp_path):
    files = {f"{index:03d}": bytes([index]) * index for index in range(50)}
    durable.write_files(tmp_path / "a", files)
    durable.write_files(tmp_path / "a", {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == files


def test_of_many_files_those_that_fit_are_whole_and_no_other_is_left(tmp_path, monkeypatch):
    real = os.replace

    def full_after_some(old, new):
        if Path(new).name >= "030":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(old, new)

    monkeypatch.setattr(os, "replace", full_after_some)
    with pytest.raises(StorageError, match=r"03\d: the storage is full: 7 bytes needed"):
        durable.write_files(tmp_path, {f"{index:03d}": b"content" for index in range(50)})
    monkeypatch.undo()
    assert names(tmp_path) == [f"{index:03d}" for index in range(30)]


@pytest.mark.parametrize("operation", ["write", "fsync", "replace"])
def test_full_disk_keeps_the_old_content_and_says_how_much_is_needed(tmp_path, monkeypatch, operation):
    path = tmp_path / "x"
    durable.write_bytes(path, b"old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if operation == "write":
        monkeypatch.setattr("builtins.open", full)
    else:
        monkeypatch.setattr(os, operation, full)
    with pytest.raises(StorageError, match=r"full: 1,000 bytes needed") as caught:
        durable.write_bytes(path, b"n" * 1000)
    monkeypatch.undo()
    assert caught.value.exit_code == 7
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_storage_that_is_no_folder_is_found_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        durable.check_writable(tmp_path / "file" / "study")


def test_a_record_reads_back_and_never_changes(tmp_path):
    path = tmp_path / "r.json"
    durable.write_record(path, {"b": 1.5, "a": ["x", None], "text": "Zürich"})
    durable.write_record(path, {"a": ["x", None], "b": 1.5, "text": "Zürich"})
    assert durable.read_record(path) == {"a": ["x", None], "b": 1.5, "text": "Zürich"}
    with pytest.raises(IntegrityError, match="never change"):
        durable.write_record(path, {"a": 2})


def test_a_record_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        durable.write_record(tmp_path / "r.json", {"distance": float("nan")})


def test_every_damaged_record_is_refused_by_name(tmp_path):
    path = tmp_path / "r.json"
    durable.write_record(path, {"num_clusters": 500, "num_used": 490})
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole) - 1)]
    for position in range(len(whole) - 1):
        damaged.append(whole[:position] + bytes([whole[position] ^ 0x01]) + whole[position + 1 :])
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            # A flipped bit in the name or number of the schema is the only damage that changes nothing that is read.
            assert durable.read_record(path) == {"num_clusters": 500, "num_used": 490}
        except IntegrityError as error:
            refused += "r.json" in str(error)
    assert refused >= len(damaged) - len('{"schema":1,')


def test_tensors_read_back_with_their_metadata(tmp_path):
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7), "empty": np.zeros((0, 3), np.int64)}
    durable.write_tensors(tmp_path / "t.safetensors", tensors, {"images_seen": 5})
    found, metadata = durable.read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"images_seen": 5}
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)


def test_every_flipped_or_truncated_tensor_file_is_refused(tmp_path):
    whole = durable.pack_tensors({"w": np.arange(40, dtype=np.float32)}, {"k": 1})
    for position in range(0, len(whole), max(1, len(whole) // 64)):
        flipped = whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :]
        with pytest.raises(IntegrityError, match="here"):
            durable.unpack_tensors(flipped, "here")
    for percent in (0, 8, 20, 50, 99):
        with pytest.raises(IntegrityError, match="here"):
            durable.unpack_tensors(whole[: len(whole) * percent // 100], "here")


def write_two_checkpoints(parent):
    durable.write_checkpoint(parent / "000100", {"state": b"s" * 640, "more": b"m"}, {"images_seen": 100})
    durable.write_checkpoint(parent / "000200", {"state": b"t" * 640, "more": b"n"}, {"images_seen": 200})


def test_the_newest_valid_checkpoint_is_read(tmp_path):
    assert durable.newest_checkpoint(tmp_path) is None
    write_two_checkpoints(tmp_path)
    (tmp_path / "000300").mkdir()
    (tmp_path / "000300" / "state").write_bytes(b"unfinished")
    found = durable.newest_checkpoint(tmp_path)
    assert found.manifest["images_seen"] == 200
    assert found.files == {"state": b"t" * 640, "more": b"n"}
    assert found.fallbacks == ()


@pytest.mark.parametrize("percent", [0, 8, 20, 50, 99])
def test_a_truncated_checkpoint_falls_back_and_says_why(tmp_path, percent):
    write_two_checkpoints(tmp_path)
    state = tmp_path / "000200" / "state"
    state.write_bytes(state.read_bytes()[: 640 * percent // 100])
    found = durable.newest_checkpoint(tmp_path)
    assert found.manifest["images_seen"] == 100
    assert "000200/state has" in found.fallbacks[0]


def test_a_checkpoint_with_any_flipped_bit_falls_back(tmp_path):
    write_two_checkpoints(tmp_path)
    for name in ("state", "manifest.json"):
        path = tmp_path / "000200" / name
        whole = path.read_bytes()
        for position in range(0, len(whole) - 1, max(1, len(whole) // 64)):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x04]) + whole[position + 1 :])
            found = durable.newest_checkpoint(tmp_path)
            assert found.files["state"] in (b"s" * 640, b"t" * 640)
            # The schema number is the one byte of the manifest that no reader depends on yet.
            assert found.manifest["images_seen"] == 100 or name == "manifest.json"
        path.write_bytes(whole)


def test_no_valid_checkpoint_left_is_an_integrity_error_with_a_way_out(tmp_path):
    write_two_checkpoints(tmp_path)
    for path in tmp_path.glob("*/state"):
        path.write_bytes(b"")
    with pytest.raises(IntegrityError, match="no valid checkpoint") as caught:
        durable.newest_checkpoint(tmp_path)
    assert "remove" in caught.value.mend


def test_a_save_killed_at_any_file_operation_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch):
    """Fault 9: the process stops at its k-th file operation, for every k."""

    class Killed(BaseException):
        pass

    def after(count, operation):
        def step(*args, **kwargs):
            if budget[0] == 0:
                raise Killed
            budget[0] -= 1
            return operation(*args, **kwargs)

        budget[0] = count
        return step

    budget = [0]
    durable.write_checkpoint(tmp_path / "000100", {"state": b"old", "more": b"o"}, {"images_seen": 100})
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    outcomes = []
    for count in range(40):
        shared = after(count, lambda *a, **k: None)

        def counted(name, shared=shared):
            def call(*args, **kwargs):
                shared()
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            try:
                durable.write_checkpoint(tmp_path / "000200", {"state": b"new", "more": b"n"}, {"images_seen": 200})
                finished = True
            except Killed:
                finished = False
        found = durable.newest_checkpoint(tmp_path)
        assert found.files in ({"state": b"old", "more": b"o"}, {"state": b"new", "more": b"n"})
        assert not finished or found.manifest["images_seen"] == 200
        outcomes.append(found.manifest["images_seen"])
        durable.keep_checkpoints(tmp_path, 2)
        if finished:
            break
        # Whatever the killed save left is not what the next one builds on.
        for path in (tmp_path / "000200").glob("*"):
            path.unlink()
    assert finished
    assert set(outcomes) == {100, 200}


def test_old_checkpoints_and_unfinished_ones_are_removed(tmp_path):
    write_two_checkpoints(tmp_path)
    durable.write_checkpoint(tmp_path / "000300", {"state": b"u"}, {"images_seen": 300})
    (tmp_path / "000250").mkdir()
    durable.keep_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["000200", "000300"]
