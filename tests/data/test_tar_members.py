"""The reader of tars against what Python's tarfile writes in its three formats."""

import contextlib
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.data.tar_members import BLOCK, MAX_EXTENDED_BYTES, TarError, tar_members

NAMES = ["a.png", "b/c.png", "n" * 90 + ".png", "d/" * 60 + "e.png", "é.png", "x" * 300]


def tar_of(names, format=tarfile.PAX_FORMAT, **fields) -> io.BytesIO:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number * 700
            info.mtime = 1_000 + number
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
    data.seek(0)
    return data


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_those_that_tarfile_wrote(format):
    names = NAMES if format != tarfile.USTAR_FORMAT else NAMES[:4]
    data = tar_of(names, format)
    found = list(tar_members(data))
    assert [member.name for member in found] == names
    for number, member in enumerate(found):
        assert data.getvalue()[member.offset : member.offset + member.size_bytes] == bytes([number]) * (number * 700)
        assert (member.time_s, member.reason, member.is_folder) == (1_000 + number, None, False)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "a symbolic link, which is not followed"),
        (tarfile.LNKTYPE, "a hard link, which is not followed"),
        (tarfile.FIFOTYPE, "a FIFO"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "not a regular file"),
    ],
)
def test_other_kinds_come_with_their_reason(kind, reason):
    (member,) = tar_members(tar_of(["a.png"], tarfile.GNU_FORMAT, type=kind))
    assert (member.name, member.reason) == ("a.png", reason)


def test_folders_are_told_apart():
    (member,) = tar_members(tar_of(["a"], type=tarfile.DIRTYPE))
    assert member.is_folder


def test_a_size_in_a_pax_header_counts():
    info = tarfile.TarInfo("a.png")
    info.size, info.pax_headers = 600, {"size": "600", "comment": "é"}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x" * 600))
    data.seek(0)
    assert [member.size_bytes for member in tar_members(data)] == [600]


def test_times_before_1970_and_large_sizes_are_numbers():
    (member,) = tar_members(tar_of(["a"], tarfile.GNU_FORMAT, mtime=-5))
    assert member.time_s == -5
    header = tarfile.TarInfo("big")
    header.size = 2**40
    with pytest.raises(TarError, match="it ends at byte"):
        list(tar_members(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT))))


def test_a_truncated_archive_is_an_error():
    data = tar_of(["a", "b"]).getvalue()
    for end in (100, BLOCK, 3 * BLOCK):
        with pytest.raises(TarError, match=r"it ends at byte .*, before its last block"):
            list(tar_members(io.BytesIO(data[:end])))


def test_a_damaged_header_is_an_error():
    data = bytearray(tar_of(["a", "b"]).getvalue())
    data[3] ^= 1
    with pytest.raises(TarError, match="the header at byte 0 is damaged: its checksum does not match"):
        list(tar_members(io.BytesIO(data)))


def test_an_oversized_name_is_not_read():
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, MAX_EXTENDED_BYTES + 1
    with pytest.raises(TarError, match="65,537 bytes, more than is allowed"):
        list(tar_members(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT))))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_mutated_archive_gives_members_or_an_error_of_ours(seed):
    rng = np.random.default_rng(seed)
    data = np.frombuffer(tar_of(NAMES).getvalue(), np.uint8).copy()
    for place in rng.integers(0, len(data), 3):
        data[place] = rng.integers(0, 256)
    with contextlib.suppress(TarError):
        assert len(list(tar_members(io.BytesIO(data.tobytes())))) <= len(NAMES)
