import io
import os
import socket
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from cedm_ray.data import sources
from cedm_ray.data.decoding import ImagesConfig, Refusal
from cedm_ray.data.sources import open_source, source_fingerprint
from cedm_ray.errors import ConfigurationError, InputDataError


def png(color=(0, 0, 0), side: int = 4) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), color).save(data, "PNG")
    return data.getvalue()


def read(path, **settings) -> tuple[list[str], dict[str, str]]:
    """The names of the good images in order, and the reasons of the refused ones by name."""
    items = list(open_source(ImagesConfig(source=str(path), **settings)))
    good = [item.name for item in items if not isinstance(item, Refusal)]
    return good, {item.name: item.reason for item in items if isinstance(item, Refusal)}


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name in ("b.png", "a/z.PNG", "a/b/c.jpg", "a-b.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())
    return root


def test_a_folder_is_read_recursively_in_the_order_of_relative_posix_paths(folder):
    assert read(folder) == (["a-b.png", "a/b/c.jpg", "a/z.PNG", "b.png"], {})


def test_a_zip_gives_the_same_images_in_the_same_order_as_the_folder_in_it(folder, tmp_path):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    archive = write_zip(tmp_path / "images.zip", dict(reversed(files.items())), zipfile.ZIP_DEFLATED)
    assert read(archive) == read(folder)


def test_hidden_names_and_macosx_are_passed_over_and_other_files_ignored(folder, tmp_path):
    extra = [".hidden.png", ".git/a.png", "__MACOSX/._b.png", "notes.txt", "inner.zip", "labels"]
    for name in extra:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png())
    assert read(folder) == (["a-b.png", "a/b/c.jpg", "a/z.PNG", "b.png"], {})
    assert read(write_zip(tmp_path / "a.zip", {name: png() for name in [*extra, "b.png"]})) == (["b.png"], {})


def test_images_of_other_formats_are_refused_unopened_by_name(folder):
    (folder / "x.svg").write_text("<svg/>")
    (folder / "y.gif").write_bytes(b"")
    assert read(folder)[1] == {
        "x.svg": ".svg is not read; PNG, JPEG, WebP, BMP and TIFF are",
        "y.gif": ".gif is not read; PNG, JPEG, WebP, BMP and TIFF are",
    }


def test_links_fifos_and_sockets_are_never_followed_or_read(folder, tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(png())
    (folder / "link.png").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    os.mkfifo(folder / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.png"))
        good, refused = read(folder)
    assert good == ["a-b.png", "a/b/c.jpg", "a/z.PNG", "b.png"]
    assert refused == {
        "fifo.png": "not a regular file",
        "link.png": "a symbolic link, which is not followed",
        "loop": "a symbolic link to a folder, which is not followed",
        "s.png": "not a regular file",
        "self.png": "a symbolic link, which is not followed",
    }


def test_a_file_that_became_a_link_or_vanished_after_listing_is_refused(folder):
    source = open_source(ImagesConfig(source=str(folder)))
    (folder / "b.png").unlink()
    (folder / "a-b.png").unlink()
    (folder / "a-b.png").symlink_to(folder / "a/z.PNG")
    refused = {item.name: item.reason for item in source if isinstance(item, Refusal)}
    assert set(refused) == {"a-b.png", "b.png"}
    assert refused["b.png"] == "No such file or directory"


def test_an_oversized_file_is_refused_unread(folder, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 50)
    assert "bytes are more than 50" in read(folder)[1]["b.png"]


def test_a_folder_without_permission_is_an_error_and_one_below_it_a_refusal(folder, monkeypatch):
    scandir = os.scandir
    denied = folder / "a"

    def deny(path):
        if Path(path) == denied:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(sources.os, "scandir", deny)
    assert read(folder) == (["a-b.png", "b.png"], {"a": "cannot list the folder: Permission denied"})
    denied = folder
    with pytest.raises(InputDataError, match=f"cannot read images from {folder}: Permission denied"):
        open_source(ImagesConfig(source=str(folder)))


def test_names_that_are_not_utf8_are_read_and_written_as_escapes(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(png())
    assert read(tmp_path) == (["caf\\xe9.png"], {})


def test_a_source_without_images_says_which_extensions_it_holds(tmp_path):
    with pytest.raises(InputDataError, match=f"no images in {tmp_path}; found: nothing"):
        open_source(ImagesConfig(source=str(tmp_path)))
    for name in ("a.txt", "b.TXT", "c.gif", "README"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputDataError, match=r"found: 2 .txt, 1 .*; refused: 1, the first is c.gif: .gif is not read"):
        open_source(ImagesConfig(source=str(tmp_path)))
    with pytest.raises(InputDataError, match=r"no images in .*empty.zip; found: nothing") as caught:
        open_source(ImagesConfig(source=str(write_zip(tmp_path / "empty.zip", {}))))
    assert caught.value.mend.startswith("images end in .bmp .jpeg")


def test_what_is_no_source_is_named_with_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputDataError, match=f"cannot read images from {tmp_path}/nowhere: No such file"):
        open_source(ImagesConfig(source="nowhere"))
    (tmp_path / "a.txt").write_text("hello world")
    with pytest.raises(InputDataError, match=r"a.txt is not a zip \(it starts with b'hello wo'\)"):
        open_source(ImagesConfig(source="a.txt"))
    os.mkfifo("fifo")
    with pytest.raises(InputDataError, match="fifo is neither a folder nor a file"):
        open_source(ImagesConfig(source="fifo"))
    with pytest.raises(InputDataError, match=r"\\x1b\[31mred: No such file"):
        open_source(ImagesConfig(source="\x1b[31mred"))
    with pytest.raises(InputDataError, match="null"):
        open_source(ImagesConfig(source="a\0b"))
    with pytest.raises(ConfigurationError, match=r"images.source is not set"):
        open_source(ImagesConfig())


def test_a_truncated_zip_is_an_error(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": png()})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputDataError, match=r"a.zip is a truncated or damaged zip") as caught:
        open_source(ImagesConfig(source=str(path)))
    assert "unzip -t" in caught.value.mend


def test_members_with_dangerous_names_are_refused_by_name(tmp_path):
    names = ["../up.png", "a/../../b.png", "/etc/c.png", "a\\d.png", "C:e.png"]
    good, refused = read(write_zip(tmp_path / "a.zip", {name: png() for name in [*names, "good.png"]}))
    assert good == ["good.png"]
    assert list(refused) == sorted(names)
    assert refused["../up.png"] == "a name that leads out of the archive"
    assert refused["C:e.png"].startswith("an absolute name")


def test_links_and_duplicates_in_a_zip_are_refused(tmp_path):
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


def test_encrypted_members_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "good.png": png()})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    path.write_bytes(data)
    assert read(path) == (["good.png"], {"a.png": "encrypted"})


def test_zip_bombs_are_refused_from_the_directory(tmp_path, monkeypatch):
    members = {"bomb.png": bytes(10**6), "good.png": png()}
    path = write_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED)
    assert read(path)[1]["bomb.png"].startswith("inflates more than 200 times")
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 10**5)
    assert read(path)[1]["bomb.png"] == "1,000,000 bytes are more than 100,000"


def test_only_stored_and_deflated_members_are_read(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.png": png()}, zipfile.ZIP_BZIP2)
    with pytest.raises(InputDataError, match="compression method 12 is not read"):
        open_source(ImagesConfig(source=str(path)))


def test_a_member_with_a_wrong_crc_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": png((9, 9, 9))})
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 1
    path.write_bytes(data)
    assert read(path) == (["b.png"], {"a.png": "Bad CRC-32 for file 'a.png'"})


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_mutated_zip_gives_images_refusals_or_an_error_of_ours(tmp_path_factory, seed):
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


def test_images_of_different_sizes_need_a_size(folder):
    (folder / "c.png").write_bytes(png(side=6))
    with pytest.raises(InputDataError, match=r"a-b.png has side 4, c.png has side 6") as caught:
        read(folder)
    assert "images.size" in caught.value.mend
    assert len(read(folder, size=4)[0]) == 5


def test_digits_are_scikit_learns_with_their_16_levels_spread_over_255():
    source = open_source(ImagesConfig(source="sklearn:digits"))
    images = list(source)
    assert len(source) == len(images) == 1797
    levels = load_digits().images
    pixels = np.stack([image.pixels for image in images])
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.abs(pixels / 255 * 16 - levels[:, None]).max() < 0.04
    assert (images[0].name, images[0].mode, images[0].width) == ("digits/0000", "L", 8)


def test_digits_obey_the_size_as_all_images_do():
    refusal = next(iter(open_source(ImagesConfig(source="sklearn:digits", size=16))))
    assert refusal.reason == "8x8 is smaller than images.size (16) and images.enlarge is false"
    image = next(iter(open_source(ImagesConfig(source="sklearn:digits", size=16, enlarge=True))))
    assert image.pixels.shape == (3, 16, 16)


def test_the_fingerprint_follows_names_sizes_times_and_settings_but_not_the_place(folder, tmp_path):
    config = ImagesConfig(source=str(folder))
    prints = [source_fingerprint(config)]
    assert source_fingerprint(config) == prints[0]
    moved = folder.rename(tmp_path / "moved")
    config = ImagesConfig(source=str(moved))
    assert source_fingerprint(config) == prints[0]
    prints.append(source_fingerprint(config.model_copy(update={"size": 2})))
    os.utime(moved / "b.png", ns=(0, 0))
    prints.append(source_fingerprint(config))
    (moved / "b.png").rename(moved / "c.png")
    prints.append(source_fingerprint(config))
    (moved / "a.gif").write_bytes(b"")
    prints.append(source_fingerprint(config))
    assert len(set(prints)) == 5


def test_the_fingerprint_of_a_zip_follows_its_content(tmp_path):
    config = ImagesConfig(source=str(tmp_path / "a.zip"))
    write_zip(tmp_path / "a.zip", {"a.png": png()})
    before = source_fingerprint(config)
    write_zip(tmp_path / "a.zip", {"a.png": png()})
    assert source_fingerprint(config) == before
    write_zip(tmp_path / "a.zip", {"a.png": png((1, 0, 0))})
    assert source_fingerprint(config) != before
