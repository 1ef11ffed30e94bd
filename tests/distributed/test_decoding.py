"""Whatever actors decode, the answers are those of one process, in its order."""

import os
import shutil
import signal
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cedm_ray.data.decoding import Refusal
from cedm_ray.data.decoding_pool import decode_source
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import import_images
from cedm_ray.data.sources import open_source
from cedm_ray.distributed import decoding
from cedm_ray.distributed.decoding import actor_cpus, cluster_decode, decode_on_actors, list_digest
from cedm_ray.errors import InputDataError, TryAgainError
from cedm_ray.search.packing import Cluster, Node
from cedm_ray.search.results import Notice


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """So that 300 images are many groups."""
    monkeypatch.setattr(decoding, "GROUP_IMAGES", 16)


@pytest.fixture
def folder(images, tmp_path) -> Path:
    """300 digits, one that is refused by its name, and one by its content."""
    root = tmp_path / "files"
    shutil.copytree(images, root)
    (root / "a.gif").write_bytes(b"")
    (root / "077b.png").write_bytes(b"<html>")
    return root


def packed(folder, kind, tmp_path) -> Path:
    """The files as a source of that kind."""
    if kind == "folder":
        return folder
    if kind == "zip":
        return Path(shutil.make_archive(str(tmp_path / "a"), "zip", folder))
    if kind == "parquet":
        pq.write_table(
            pa.table({"image": [path.read_bytes() for path in sorted(folder.glob("*.png"))]}), tmp_path / "a.parquet"
        )
        return tmp_path / "a.parquet"
    path = tmp_path / ("a.tar" if kind == "tar" else "a.tar.gz")
    with tarfile.open(path, "w" if kind == "tar" else "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return path


def plain(decoded):
    """An answer as something that can be compared."""
    image = decoded.image
    if isinstance(image, Refusal):
        return image
    return image.name, image.pixels.tobytes(), image.width, image.height, image.mode, image.sha256, decoded.label


def actors() -> list[int]:
    """The process ids of our actors on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if title.startswith(b"ray::_DecodingActor"):
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("kind", "cpus"),
    # An actor takes seconds to start. Who reads by position is shared out to two; of the others the driver sends the
    # images, and how many take them is the same to all.
    [("folder", [1]), ("tar", [2, 1]), ("gzipped tar", [2, 1]), ("zip", [1]), ("parquet", [2])],
)
def test_actors_give_what_one_process_gives(cluster, folder, tmp_path, kind, cpus):
    config = ImagesConfig(source=str(packed(folder, kind, tmp_path)), size=8)
    alone = [plain(item) for item in decode_source(open_source(config), config, workers=0)]
    assert len(alone) >= 301
    assert [plain(item) for item in decode_on_actors(open_source(config), config, cpus)] == alone


def test_the_set_has_the_same_bytes_as_one_process_makes(cluster, folder, tmp_path, monkeypatch):
    """By a relative path, although no actor runs in the folder where the command was given."""
    monkeypatch.chdir(folder.parent)
    config = ImagesConfig(source=folder.name)

    def over_the_cluster(source, config):
        return decode_on_actors(source, config, [1, 1])

    for name, how in (("alone", {"workers": 0}), ("together", {"decode": over_the_cluster})):
        for _ in import_images(config, tmp_path / name, **how):
            pass
    for file in ("pixels.npy", "index.parquet"):
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "together" / file).read_bytes()


def test_an_actor_that_is_lost_is_replaced_and_nothing_is_missing_or_twice(cluster, folder):
    config = ImagesConfig(source=str(folder))
    alone = [plain(item) for item in decode_source(open_source(config), config, workers=0)]
    found = []
    for item in decode_on_actors(open_source(config), config, [1]):
        found.append(plain(item))
        if len(found) == 40:
            (process,) = actors()
            os.kill(process, signal.SIGKILL)
    assert found == alone


def test_actors_that_are_lost_again_and_again_end_the_import(cluster, folder, monkeypatch):
    monkeypatch.setattr(decoding, "LOSSES", 1)
    config = ImagesConfig(source=str(folder))
    decoded = decode_on_actors(open_source(config), config, [1])
    for _ in range(40):
        next(decoded)
    os.kill(actors()[0], signal.SIGKILL)
    with pytest.raises(TryAgainError, match="1 processes that decoded the same images were lost") as caught:
        list(decoded)
    assert "run the same command again" in caught.value.mend


def test_a_machine_that_cannot_read_the_source_is_said_and_what_to_do(cluster, folder):
    config = ImagesConfig(source=str(folder))
    source = open_source(config)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(
        InputDataError, match=r"a machine of the cluster cannot read the images: .*No such file"
    ) as caught:
        list(decode_on_actors(source, config, [1]))
    assert "under the same path" in caught.value.mend


def test_a_machine_with_other_images_at_the_same_place_is_noticed(cluster, folder):
    config = ImagesConfig(source=str(folder))
    source = open_source(config)
    (folder / "000.png").rename(folder / "0000.png")
    with pytest.raises(InputDataError, match="another machine of the cluster finds other images at"):
        list(decode_on_actors(source, config, [1]))


def test_an_image_that_forbids_to_go_on_ends_it_at_its_place(cluster, folder):
    Image.new("RGB", (8, 9)).save(folder / "150b.png")
    config = ImagesConfig(source=str(folder))
    decoded = decode_on_actors(open_source(config), config, [2])
    names = [next(decoded).image.name for _ in range(153)]
    assert names[-1] == "150.png"
    with pytest.raises(InputDataError, match=r"150b.png is 8x9, not square") as caught:
        next(decoded)
    assert "images.crop" in caught.value.mend


def test_equal_lists_are_of_equal_names_and_sizes_whatever_their_times(folder):
    before = list_digest(open_source(folder))
    os.utime(folder / "000.png", (1, 1))
    assert list_digest(open_source(folder)) == before
    (folder / "000.png").rename(folder / "z.png")
    assert list_digest(open_source(folder)) != before


def test_only_large_sources_on_several_machines_use_the_cluster(cluster, folder, monkeypatch):
    shown: list = []
    config = ImagesConfig(source=str(folder))
    used = []
    monkeypatch.setattr(decoding, "decode_on_actors", lambda source, config, cpus: used.append(cpus) or iter(()))
    machines = [Node(name="a", cpus=2), Node(name="b", cpus=20)]
    monkeypatch.setattr(decoding, "cluster_nodes", lambda: Cluster(nodes=tuple(machines)))
    with cluster_decode("auto", shown.append) as decode:
        assert len(list(decode(open_source(config), config))) == 302
        monkeypatch.setattr(decoding, "LARGE_IMAGES", 300)
        list(decode(open_source(config), config))
        assert used == [[2, 8, 8, 4]]
        assert shown == [Notice(text="302 images are decoded on 2 machines")]
        del machines[1]
        assert len(list(decode(open_source(config), config))) == 302
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster_decode(None, shown.append) as decode:
        assert len(list(decode(open_source(config), config))) == 302
    assert len(used) == 1


def test_a_machine_has_actors_of_at_most_eight_cores():
    assert actor_cpus([Node(name="a", cpus=9.5), Node(name="b", cpus=8)]) == [8, 1, 8]
