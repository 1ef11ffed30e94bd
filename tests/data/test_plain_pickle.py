"""The reader of plain pickles against what Python's pickle writes, and against what must never be read."""

import contextlib
import os
import pickle
import pickletools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.data import plain_pickle
from cedm_ray.data.plain_pickle import read_plain_pickle
from cedm_ray.errors import InputDataError, SecurityError

DATA = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
BATCH = {
    b"batch_label": b"training batch 1 of 5",
    b"labels": [0, 9, 300, 70_000],
    b"data": DATA,
    b"filenames": [b"a.png", b"\xe9.png", "unicode é", "x" * 300],
    b"none": None,
    b"flags": [True, False],
    b"tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), -7],
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_values_and_arrays_are_what_pickle_reads(protocol):
    found = read_plain_pickle(pickle.dumps(BATCH, protocol), "x")
    expected = {key.decode(): value for key, value in BATCH.items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(found[key], value) if key == "data" else found[key] == value


def test_a_batch_as_python_2_wrote_it():
    """By hand, opcode by opcode, as cPickle of Python 2.7 writes {'labels': [6], 'data': a uint8 array [1, 2]}."""
    data = (
        b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03K\x06aU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\n"
        b"ndarray\nq\x06K\x00\x85q\x07U\x01bq\x08\x87q\tRq\n(K\x01K\x01K\x02\x86q\x0bcnumpy\ndtype\nq\x0cU\x02u1q\rK\x00"
        b"K\x01\x87q\x0eRq\x0f(K\x03U\x01|q\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x11b\x89T\x02\x00\x00\x00\x05"
        b"\x07q\x12tq\x13bu."
    )
    found = read_plain_pickle(data, "x")
    assert found["labels"] == [6]
    assert found["data"].tolist() == [[5, 7]]


class Attack:
    """What unpickling would run."""

    ran = False

    def __reduce__(self):
        return os.system, ("echo attacked > /tmp/cedm-ray-attacked",)


class Harmless:
    """An object of our own."""


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", [Attack(), Harmless(), {1, 2}, 1.5, 2**80, np.float32(1), bytearray(b"a"), print])
def test_anything_else_is_refused_and_nothing_runs(protocol, value, monkeypatch):
    data = pickle.dumps({b"data": value} if not isinstance(value, Attack) else [value], protocol)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    with pytest.raises(SecurityError, match="it was not read"):
        read_plain_pickle(data, "batch")


@pytest.mark.parametrize("dtype", ["object", "int64", "float32", "S3"])
def test_arrays_of_other_types_are_refused(dtype):
    array = np.array([{}] if dtype == "object" else [1]).astype(dtype)
    with pytest.raises(SecurityError):
        read_plain_pickle(pickle.dumps({b"data": array}, 2), "batch")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends early"),
        (b"\x80\x02}q\x01", "ends early"),
        (b"\x80\x02]q\x01.", "holds no dictionary"),
        (b"\x80\x02}U\x01ash\x09.", "damaged"),
        (b"\x80\x02u.", "a mark is missing"),
        (b"\x80\x02\x87.", "stack is too short"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02K\x01K\x02a.", "appended to no list"),
        (b"\x80\x02}]K\x01s.", "a key is no text"),
        (b"\x80\x02T\xff\xff\xff\x7fabc", "ends early"),
    ],
)
def test_a_damaged_file_is_an_error(data, message):
    with pytest.raises(InputDataError, match=message):
        read_plain_pickle(data, "batch")


def test_a_file_may_not_take_more_steps_than_any_batch_does(monkeypatch):
    monkeypatch.setattr(plain_pickle, "MAX_STEPS", 100)
    with pytest.raises(SecurityError, match="more than 100 opcodes"):
        read_plain_pickle(b"\x80\x02" + b"]" * 1_000, "batch")


@given(seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_mutated_pickle_gives_values_or_an_error_of_ours(seed):
    rng = np.random.default_rng(seed)
    whole = pickletools.optimize(pickle.dumps({**BATCH, b"data": DATA[:, :3]}, 2))
    data = np.frombuffer(whole, np.uint8).copy()
    data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
    with contextlib.suppress(InputDataError, SecurityError):
        read_plain_pickle(data.tobytes(), "batch")
