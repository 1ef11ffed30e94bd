import lzma
import os
import zlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cedm_ray.config import digest
from cedm_ray.data.decoding import decode_entries
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import expand_pattern, open_source, source_fingerprint
from cedm_ray.errors import ConfigurationError, InputDataError


def test_a_source_without_images_says_which_extensions_it_holds(tmp_path, write_zip):
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
    with pytest.raises(InputDataError, match=r"a.txt is of no kind that is read \(it starts with b'hello wo'\)"):
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


def test_images_of_different_sizes_need_a_size(folder, png, read):
    (folder / "c.png").write_bytes(png(side=6))
    with pytest.raises(InputDataError, match=r"a-b.png has side 4, c.png has side 6") as caught:
        read(folder)
    assert "images.size" in caught.value.mend
    assert len(read(folder, size=4)[0]) == 5


def test_digits_are_scikit_learns_with_their_16_levels_spread_over_255():
    source = open_source("sklearn:digits")
    images = list(decode_entries(source, ImagesConfig()))
    assert len(source) == len(images) == 1797
    levels = load_digits().images
    pixels = np.stack([image.pixels for image in images])
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.abs(pixels / 255 * 16 - levels[:, None]).max() < 0.04
    assert (images[0].name, images[0].mode, images[0].width) == ("digits/0000", "L", 8)


def test_digits_obey_the_size_as_all_images_do():
    digits = open_source("sklearn:digits")
    refusal = next(decode_entries(digits, ImagesConfig(size=16)))
    assert refusal.reason == "8x8 is smaller than images.size (16) and images.enlarge is false"
    image = next(decode_entries(digits, ImagesConfig(size=16, enlarge=True)))
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


def test_the_fingerprint_of_a_zip_follows_its_content(tmp_path, png, write_zip):
    config = ImagesConfig(source=str(tmp_path / "a.zip"))
    write_zip(tmp_path / "a.zip", {"a.png": png()})
    before = source_fingerprint(config)
    write_zip(tmp_path / "a.zip", {"a.png": png()})
    assert source_fingerprint(config) == before
    write_zip(tmp_path / "a.zip", {"a.png": png((1, 0, 0))})
    assert source_fingerprint(config) != before


def test_the_fingerprints_are_those_of_earlier_versions(tmp_path, png, write_zip):
    """By hand, as studies have recorded them: a digest of one list."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "b.png").write_bytes(png())
    os.utime(tmp_path / "files" / "b.png", ns=(5, 5))
    (tmp_path / "files" / "a.gif").write_bytes(b"")
    config = ImagesConfig(source=str(tmp_path / "files"))
    images = {
        "size": None,
        "crop": "none",
        "enlarge": False,
        "background": "black",
        "on_bad": "skip",
        "max_bad_fraction": 0.01,
        "max_pixels": 64_000_000,
    }
    refused = [["a.gif", ".gif is not read; PNG, JPEG, WebP, BMP and TIFF are"]]
    content = [["b.png", len(png()), 5], refused]
    assert source_fingerprint(config) == digest({"images": images, "content": content})
    path = write_zip(tmp_path / "a.zip", {"b.png": png(), "a.txt": b"x"})
    content = [path.stat().st_size, ["a.txt", zlib.crc32(b"x"), 1], ["b.png", zlib.crc32(png()), len(png())]]
    config = ImagesConfig(source=str(path))
    assert source_fingerprint(config) == digest({"images": images, "content": content})
    config = ImagesConfig(source="sklearn:digits")
    assert source_fingerprint(config) == digest({"images": images, "content": ["sklearn:digits"]})


def test_a_pattern_names_files_in_the_order_of_their_names(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"")

    def names(pattern):
        return [path.name for path in expand_pattern(str(tmp_path / pattern))]

    assert names("a-{08..10}.tar") == names("a-*.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert names("{b,a-10}.tar") == names("{a-10,b}.tar") == ["a-10.tar", "b.tar"]
    assert names("a-0[89].tar") == ["a-08.tar", "a-09.tar"]
    assert names("b.tar") == names("c-*.tar") == []


@pytest.mark.parametrize("pattern", ["{0..999999999}.tar", "{0..999}{0..999}.tar"])
def test_a_pattern_may_not_name_too_many_files(tmp_path, pattern):
    with pytest.raises(InputDataError, match=r"names more files than images.max_shards \(100,000\)"):
        open_source(tmp_path / pattern)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(InputDataError, match=r"there is no file .*/1.tar, which .*\{0..1\}.tar names"):
        open_source(tmp_path / "{0..1}.tar")


def test_other_packings_are_named(tmp_path):
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(b"x"))
    with pytest.raises(InputDataError, match=r"a.tar.xz is packed by xz, which is not read"):
        open_source(tmp_path / "a.tar.xz")


def test_a_folder_of_tars_and_parquet_files_is_ambiguous(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(InputDataError, match="holds both Parquet files and tars"):
        open_source(tmp_path)
