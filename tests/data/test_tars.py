import gzip
import io
import tarfile

import pytest

from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError


def write_tar(path, members, mode="w"):
    """members: (name or TarInfo, bytes), in this order."""
    with tarfile.open(path, mode) as archive:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data) if info.type == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("odd", "w:gz")])
def test_members_come_in_the_order_of_the_archive(tmp_path, png, name, mode):
    pictures = [("z.png", png((1, 0, 0))), ("a/b.png", png((2, 0, 0))), ("notes.txt", b"x"), ("c.png", png((3, 0, 0)))]
    source = open_source(write_tar(tmp_path / name, pictures, mode))
    assert [(entry.name, entry.content) for entry in source] == [pictures[0], pictures[1], pictures[3]]
    assert (source.kind, source.streamed, source.labelled, len(source)) == ("tar", mode == "w:gz", False, 3)
    assert [entry.name for entry in source.at([0, 2])] == ["z.png", "c.png"]


def test_dangerous_members_are_refused_by_name(tmp_path, png, read):
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [
        (link, b""),
        ("../up.png", png()),
        ("/root.png", png()),
        ("twice.png", png()),
        ("twice.png", png((1, 1, 1))),
        ("in/inner.zip", b"PK"),
        ("x.gif", b"GIF8"),
        (".hidden.png", png()),
        ("./good.png", png()),
    ]
    good, refused = read(write_tar(tmp_path / "a.tar", members))
    assert good == ["good.png"]
    assert refused == {
        "link.png": "a symbolic link, which is not followed",
        "../up.png": "a name that leads out of the archive",
        "/root.png": "an absolute name, or one with a backslash, a drive or a NUL",
        "twice.png": "2 members have this name",
        "in/inner.zip": "an archive in the archive, which is not opened",
        "x.gif": ".gif is not read; PNG, JPEG, WebP, BMP and TIFF are",
    }


def test_an_oversized_member_is_refused_unread(tmp_path, png, read):
    path = write_tar(tmp_path / "a.tar", [("a.png", png()), ("b.png", bytes(2_000))])
    refused = {"b.png": "2,000 bytes are more than images.max_file_bytes (1,000)"}
    assert read(path, max_file_bytes=1_000) == (["a.png"], refused)


def test_a_tar_that_holds_too_much_is_an_error(tmp_path, png, read):
    path = write_tar(tmp_path / "a.tar", [("a.png", png()), ("b.png", png())])
    size_bytes = 2 * len(png())
    assert len(read(path, max_files=2, max_unpacked_bytes=size_bytes)[0]) == 2
    with pytest.raises(InputDataError, match=r"a.tar: it holds more files than images.max_files \(1\)") as caught:
        read(path, max_files=1)
    assert "raise the setting" in caught.value.mend
    with pytest.raises(
        InputDataError, match=rf"holds {size_bytes} bytes unpacked, more than images.max_unpacked_bytes"
    ):
        read(path, max_unpacked_bytes=size_bytes - 1)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_tar_is_an_error(tmp_path, png, mode):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.png", png((i, 0, 0))) for i in range(9)], mode)
    path.write_bytes(path.read_bytes()[: -2_000 if mode == "w" else -40])
    with pytest.raises(InputDataError, match=r"a.tar is a truncated or damaged tar") as caught:
        list(open_source(path))
    assert "tar -t" in caught.value.mend


def test_a_gzip_bomb_is_refused_before_it_inflates(tmp_path, png):
    path = write_tar(tmp_path / "a.tar", [("a.png", png()), ("b.bin", bytes(50_000_000)), ("c.png", png())], "w:gz")
    assert path.stat().st_size < 100_000
    with pytest.raises(InputDataError, match=r"it inflates more than images.max_ratio \(200\) times"):
        open_source(path)


def test_shards_are_one_source_with_the_labels_beside_the_images(tmp_path, png):
    for shard in range(2):
        members = []
        for row in range(2):
            members += [(f"{row:03d}.jpg", png((shard, row, 0))), (f"{row:03d}.cls", f"{shard * 10 + row}\n".encode())]
        write_tar(tmp_path / f"train-{shard:04d}.tar", members)
    expected = [
        ("train-0000.tar/000.jpg", 0),
        ("train-0000.tar/001.jpg", 1),
        ("train-0001.tar/000.jpg", 10),
        ("train-0001.tar/001.jpg", 11),
    ]
    for where in (tmp_path, tmp_path / "train-{0000..0001}.tar", tmp_path / "train-*.tar"):
        source = open_source(where)
        assert (source.kind, source.labelled) == ("webdataset", True)
        assert [(entry.name, entry.label) for entry in source] == expected
        assert [entry.name for entry in source.at([3, 0])] == [expected[3][0], expected[0][0]]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"cat", r'0.cls has the label "cat"'),
        (b"-1", 'has the label "-1"'),
        (b"1.5", "has the label"),
        (b"9" * 10, "has the label"),
        (b"1" * 99, "has the label"),
    ],
)
def test_a_bad_label_is_named(tmp_path, png, label, message):
    with pytest.raises(InputDataError, match=message):
        open_source(write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.cls", label)]))


def test_labels_for_some_images_only_are_an_error(tmp_path, png):
    path = write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.cls", b"1"), ("1.png", png())])
    with pytest.raises(InputDataError, match=r"1.png has no label in a .cls beside it"):
        open_source(path)


def test_what_is_a_gzip_of_something_else_is_of_no_kind(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"hello world" * 100))
    with pytest.raises(InputDataError, match="is of no kind that is read"):
        open_source(tmp_path / "a.gz")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"hello world" * 100)[:20])
    with pytest.raises(InputDataError, match="truncated or damaged gzip"):
        open_source(tmp_path / "b.gz")


def test_a_tar_without_images_says_what_it_holds(tmp_path):
    with pytest.raises(InputDataError, match=r"no images in .*a.tar; found: 1 .txt"):
        open_source(write_tar(tmp_path / "a.tar", [("a.txt", b"x")]))
