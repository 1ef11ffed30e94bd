"""Files of torch.save, and what only looks like one."""

import argparse
import pickle
import warnings

import pytest
import torch

from cedm_ray.data.torch_files import read_torch_file
from cedm_ray.errors import InputDataError, SecurityError


class Explosive:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_tensors_and_plain_values_are_read(tmp_path):
    torch.save({"w": torch.arange(3), "epoch": 4, "names": ["a"]}, tmp_path / "x.pt")
    found = read_torch_file(tmp_path / "x.pt")
    assert (found["w"].tolist(), found["epoch"], found["names"]) == ([0, 1, 2], 4, ["a"])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_other_objects_are_refused_unread(tmp_path, protocol):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Explosive(), protocol=protocol))
    with pytest.raises(SecurityError, match=r"x\.pt holds pickled Python objects other than tensors") as caught:
        read_torch_file(tmp_path / "x.pt", mend="save the tensor alone")
    assert caught.value.mend == "save the tensor alone"


def test_a_checkpoint_with_other_objects_in_it_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1), "args": argparse.Namespace(lr=1)}, tmp_path / "x.pt")
    with pytest.raises(SecurityError, match=r"x\.pt holds pickled"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x00" * 100, b"PK\x03\x04broken"])
def test_files_of_anything_else_are_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises((InputDataError, SecurityError), match=r"x\.pt"):
        read_torch_file(tmp_path / "x.pt")


def test_torchscript_is_not_a_file_of_torch_save(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script. is deprecated", category=FutureWarning)
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "x.pt"))
    with pytest.raises(InputDataError, match=r"not a file of torch\.save"):
        read_torch_file(tmp_path / "x.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputDataError, match=r"there is no file .*none.pt"):
        read_torch_file(tmp_path / "none.pt")
