"""Whatever decodes, the answers are those of this process, in its order."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from cedm_ray.data import decoding_pool
from cedm_ray.data.decoding import Refusal, SourceImage
from cedm_ray.data.decoding_pool import EarlyPool, decode_source, num_workers
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError

KILLER = (
    "import json, os, sys; sys.path[:] = json.loads(sys.argv[1]); from cedm_ray.data import decoding_worker as w; "
    "real = w.decode_without_warnings; "
    "w.decode_without_warnings = lambda n, *rest: os.kill(os.getpid(), 9) if n == '130.png' else real(n, *rest); "
    "w.main()"
)


def children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that a few images are several pieces."""
    monkeypatch.setattr(decoding_pool, "PIECE_IMAGES", 64)


@pytest.fixture(params=["folder", "zip", "npz"])
def source(request, tmp_path, png, write_zip):
    """150 pictures; of files, two are refused when they are listed, and one when it is decoded."""
    pictures = {f"{row:03d}.png": png((row, 0, 0)) for row in range(150)} | {
        "a.gif": b"",
        "b.gif": b"",
        "077.png": b"x",
    }
    if request.param == "npz":
        np.savez(
            tmp_path / "a.npz", x=np.arange(150, dtype=np.uint8).repeat(48).reshape(150, 4, 4, 3), y=np.arange(150)
        )
        return open_source(tmp_path / "a.npz")
    if request.param == "zip":
        return open_source(write_zip(tmp_path / "a.zip", pictures))
    for name, data in pictures.items():
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_bytes(data)
    return open_source(tmp_path / "files")


def plain(decoded):
    """An answer as something that can be compared."""
    image = decoded.image
    if isinstance(image, Refusal):
        return image, decoded.label
    return image.name, image.pixels.tobytes(), image.width, image.height, image.mode, image.sha256, decoded.label


def test_workers_change_nothing_and_are_gone_afterwards(source):
    config = ImagesConfig()
    alone = [plain(item) for item in decode_source(source, config, workers=0)]
    assert len(alone) == len(source)
    assert [plain(item) for item in decode_source(source, config, workers=2)] == alone
    assert children() == []


def test_an_image_that_forbids_to_go_on_ends_it_at_its_place(tmp_path, png, write_zip):
    from PIL import Image

    Image.new("RGB", (4, 6)).save(tmp_path / "100.png")
    members = {f"{row:03d}.png": png() for row in range(150)} | {"100.png": (tmp_path / "100.png").read_bytes()}
    source = open_source(write_zip(tmp_path / "a.zip", members))
    for workers in (0, 1):
        decoding = decode_source(source, ImagesConfig(), workers=workers)
        done = [item.image.name for item in itertools.islice(decoding, 100)]
        with pytest.raises(InputDataError, match=r"100.png is 4x6, not square") as caught:
            next(decoding)
        assert done == [f"{row:03d}.png" for row in range(100)]
        assert "images.crop" in caught.value.mend
    assert children() == []


def test_workers_that_started_early_change_nothing_and_end_with_their_block(source, monkeypatch):
    monkeypatch.setattr(decoding_pool, "MIN_IMAGES", 150)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    config = ImagesConfig()
    alone = [plain(item) for item in decode_source(source, config, workers=0)]
    for workers, started in ((None, 2), (1, 1), (0, 0)):
        with EarlyPool(config, workers) as early:
            early.listed(149)
            assert early.pool is None
            early.listed(150)
            early.listed(151)
            assert len(children()) == started
            assert [plain(item) for item in decode_source(source, config, workers=workers, pool=early.pool)] == alone
        assert children() == []


def test_a_folder_tells_how_many_images_were_found_while_it_is_listed(tmp_path):
    for row in range(2_001):
        (tmp_path / f"{row}.png").touch()
    told: list[int] = []
    open_source(tmp_path, listed_so_far=told.append)
    assert told == [1_000, 2_000]


def test_whoever_stops_listening_leaves_no_process(source):
    decoding = decode_source(source, ImagesConfig(), workers=1)
    next(decoding)
    assert len(children()) == 1
    decoding.close()
    assert children() == []


def test_an_image_that_kills_its_decoder_is_refused_alone(tmp_path, png, write_zip, monkeypatch):
    monkeypatch.setattr(decoding_pool, "_PROGRAM", KILLER)
    source = open_source(write_zip(tmp_path / "a.zip", {f"{row:03d}.png": png() for row in range(125, 135)}))
    images = [item.image for item in decode_source(source, ImagesConfig(), workers=1)]
    assert [image.name for image in images if isinstance(image, SourceImage)] == [
        f"{row:03d}.png" for row in range(125, 135) if row != 130
    ]
    refused = [image for image in images if isinstance(image, Refusal)]
    assert refused == [Refusal(name="130.png", reason="the decoder died of it (signal SIGKILL)")]


def test_few_images_and_one_core_need_no_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    assert (num_workers(10, 10**6), num_workers(10**6, 10**6), num_workers(100, 10**9)) == (0, 4, 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert num_workers(10**6, 10**9) == 0
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        next(decode_source(open_source("sklearn:digits"), ImagesConfig(), workers=-1))
