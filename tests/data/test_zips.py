import stat
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError


def test_a_zip_gives_the_same_images_in_the_same_order_as_the_folder_in_it(folder, tmp_path, read, write_zip):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    archive = write_zip(tmp_path / "images.zip", dict(reversed(files.items())), zipfile.ZIP_DEFLATED)
    assert read(archive) == read(folder)


def test_a_truncated_zip_is_an_error(tmp_path, png, write_zip):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": png()})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputDataError, match=r"a.zip is a truncated or damaged zip") as caught:
        open_source(ImagesConfig(source=str(path)))
    assert "unzip -t" in caught.value.mend


def test_members_with_dangerous_names_are_refused_by_name(tmp_path, png, read, write_zip):
    names = ["../up.png", "a/../../b.png", "/etc/c.png", "a\\d.png", "C:e.png"]
    good, refused = read(write_zip(tmp_path / "a.zip", {name: png() for name in [*names, "good.png"]}))
    assert good == ["good.png"]
    assert list(refused) == sorted(names)
    assert refused["../up.png"] == "a name that leads out of the archive"
    assert refused["C:e.png"].startswith("an absolute name")


def test_an_archive_in_the_archive_is_refused_unopened(tmp_path, png, read, write_zip):
    inner = write_zip(tmp_path / "inner.zip", {"b.png": png()}).read_bytes()
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "more/inner.zip": inner, "c.tar.gz": b""})
    why = "an archive in the archive, which is not opened"
    assert read(path) == (["a.png"], {"more/inner.zip": why, "c.tar.gz": why})


def test_links_and_duplicates_in_a_zip_are_refused(tmp_path, png, read):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("twice.png", png())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("twice.png", png((1, 1, 1)))
        archive.writestr("good.png", png())
    refused = {"link.png": "a symbolic link", "twice.png": "2 members have this name"}
    assert read(path) == (["good.png"], refused)


def test_encrypted_members_are_refused(tmp_path, png, read, write_zip):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "good.png": png()})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    path.write_bytes(data)
    assert read(path) == (["good.png"], {"a.png": "encrypted"})


def test_zip_bombs_are_refused_from_the_directory(tmp_path, png, read, write_zip):
    members = {"bomb.png": bytes(10**6), "good.png": png()}
    path = write_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED)
    assert read(path)[1]["bomb.png"].startswith("it inflates more than images.max_ratio (200) times (")
    told = "1,000,000 bytes are more than images.max_file_bytes (100,000)"
    assert read(path, max_file_bytes=10**5)[1]["bomb.png"] == told
    # Whoever means it may have it: then it is no image, and that is said.
    assert "not PNG" in read(path, max_ratio=10**6)[1]["bomb.png"]


def test_a_zip_that_holds_too_much_is_an_error(tmp_path, png, read, write_zip):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": png()})
    size_bytes = 2 * len(png())
    assert len(read(path, max_files=2, max_unpacked_bytes=size_bytes)[0]) == 2
    with pytest.raises(InputDataError, match=r"a.zip: it holds more files than images.max_files \(1\)"):
        read(path, max_files=1)
    with pytest.raises(
        InputDataError, match=rf"holds {size_bytes} bytes unpacked, more than images.max_unpacked_bytes"
    ):
        read(path, max_unpacked_bytes=size_bytes - 1)


def test_only_stored_and_deflated_members_are_read(tmp_path, png, write_zip):
    path = write_zip(tmp_path / "a.zip", {"a.png": png()}, zipfile.ZIP_BZIP2)
    with pytest.raises(InputDataError, match="compression method 12 is not read"):
        open_source(ImagesConfig(source=str(path)))


def test_a_member_with_a_wrong_crc_is_refused(tmp_path, png, read, write_zip):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": png((9, 9, 9))})
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 1
    path.write_bytes(data)
    assert read(path) == (["b.png"], {"a.png": "Bad CRC-32 for file 'a.png'"})


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_mutated_zip_gives_images_refusals_or_an_error_of_ours(tmp_path_factory, seed, png, read, write_zip):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("fuzz") / "a.zip"
    write_zip(path, {f"{i}.png": png((i, i, i)) for i in range(3)}, zipfile.ZIP_DEFLATED)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
    path.write_bytes(data.tobytes())
    try:
        good, refused = read(path)
    except InputDataError:
        return
    assert len(good) + len(refused) >= 1
