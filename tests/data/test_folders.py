import os
import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cedm_ray.data import folders
from cedm_ray.data.decoding import Refusal
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError


def test_a_folder_is_read_recursively_in_the_order_of_relative_posix_paths(folder, read):
    assert read(folder) == (["a-b.png", "a/b/c.jpg", "a/z.PNG", "b.png"], {})


def test_folders_and_files_have_the_order_of_their_whole_names(tmp_path, png):
    """Also where a folder's name begins as that of a file, with characters before and after the slash."""
    rng = np.random.default_rng(0)
    pieces = ["a", "a.b", "a b", "a-", "a0", "aa", "A", "é", "漢", "z!"]
    for _ in range(200):
        below = tmp_path.joinpath(*rng.choice(pieces, rng.integers(0, 4)))
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{rng.choice(pieces)}.png").write_bytes(png())
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")]
    source = open_source(tmp_path)
    assert list(source.files) == sorted(names)
    assert [item.name for item in source] == sorted(names)
    assert len(names) > 100


def test_the_list_of_a_folder_takes_little_memory(tmp_path):
    for row in range(2_000):
        (tmp_path / f"{row:06d}-of-a-large-data-set.png").touch()
    # What is imported for it comes first.
    open_source(tmp_path)
    tracemalloc.start()
    source = open_source(tmp_path)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # The name, where it ends, size and time: 54 bytes. With a string for each name they are over 100.
    assert len(source) == 2_000
    assert kept / 2_000 < 80


def test_images_of_other_formats_are_refused_unopened_by_name(folder, read):
    (folder / "x.svg").write_text("<svg/>")
    (folder / "y.gif").write_bytes(b"")
    assert read(folder)[1] == {
        "x.svg": ".svg is not read; PNG, JPEG, WebP, BMP and TIFF are",
        "y.gif": ".gif is not read; PNG, JPEG, WebP, BMP and TIFF are",
    }


def test_links_fifos_and_sockets_are_never_followed_or_read(folder, tmp_path, png, read):
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


def test_an_oversized_file_is_refused_unread(folder, read):
    assert "bytes are more than images.max_file_bytes (50)" in read(folder, max_file_bytes=50)[1]["b.png"]


def test_a_folder_of_too_many_files_is_an_error(folder, read):
    """Four images, and the two folders that they lie in."""
    assert len(read(folder, max_files=6)[0]) == 4
    with pytest.raises(InputDataError, match=r"cannot use .*images: it holds more files than images.max_files \(5\)"):
        read(folder, max_files=5)


def test_a_folder_without_permission_is_an_error_and_one_below_it_a_refusal(folder, monkeypatch, read):
    scandir = os.scandir
    denied = folder / "a"

    def deny(path):
        if Path(path) == denied:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", deny)
    assert read(folder) == (["a-b.png", "b.png"], {"a": "cannot list the folder: Permission denied"})
    denied = folder
    with pytest.raises(InputDataError, match=f"cannot read images from {folder}: Permission denied"):
        open_source(ImagesConfig(source=str(folder)))


def test_names_that_are_not_utf8_are_read_and_written_as_escapes(tmp_path, png, read):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(png())
    assert read(tmp_path) == (["caf\\xe9.png"], {})


def test_hidden_names_and_macosx_are_passed_over_and_other_files_ignored(folder, tmp_path, png, read, write_zip):
    extra = [".hidden.png", ".git/a.png", "__MACOSX/._b.png", "notes.txt", "inner.zip", "labels"]
    for name in extra:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png())
    assert read(folder) == (["a-b.png", "a/b/c.jpg", "a/z.PNG", "b.png"], {})
    archive = write_zip(tmp_path / "a.zip", {name: png() for name in [*extra, "b.png"]})
    assert read(archive) == (["b.png"], {"inner.zip": "an archive in the archive, which is not opened"})
