import io

import numpy as np
import pytest

from cedm_ray.data.decoding import Refusal, decode_image
from cedm_ray.data.decoding_worker import main, pack, read_answers, read_header, write_message
from cedm_ray.data.entries import Entry, UnreadEntry
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.errors import InputDataError


def test_messages_are_read_as_they_were_written():
    file = io.BytesIO()
    write_message(file, [["é", 3, None]], [b"abc"])
    write_message(file, [1], [])
    file.seek(0)
    assert read_header(file) == [["é", 3, None]]
    assert file.read(3) == b"abc"
    assert (read_header(file), read_header(file)) == ([1], None)


@pytest.mark.parametrize("cut", [4, 10, 14])
def test_half_a_message_is_the_end(cut):
    file = io.BytesIO()
    write_message(file, [["a", 3, None]], [])
    assert read_header(io.BytesIO(file.getvalue()[:cut])) is None


def test_the_worker_answers_as_the_decoder_does(png, monkeypatch, tmp_path):
    config = ImagesConfig(size=4, max_file_bytes=1000)
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    (tmp_path / "b.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "large").write_bytes(bytes(1001))
    contents = {"a.png": png((9, 8, 7)), "bad": b"<html>", "array": grey, "wide": np.zeros((4, 5, 3), np.uint8)}
    entries = [Entry(name=name, content=content) for name, content in contents.items()]
    files = [UnreadEntry(name=name, path=str(tmp_path / name)) for name in ("b.png", "gone", "large")]
    asked = io.BytesIO()
    write_message(asked, [config.model_dump(mode="json")], [])
    entries = [entries[0], *files, *entries[1:]]
    packed = [pack(entry) for entry in entries]
    write_message(asked, [item for item, _ in packed], [data for _, data in packed])
    asked.seek(0)
    with open(tmp_path / "out", "wb+") as out:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(asked))
        monkeypatch.setattr("os.dup", lambda _: out.fileno())
        monkeypatch.setattr("os.dup2", lambda *_: None)
        monkeypatch.setattr("os.fdopen", lambda *_: out)
        main()
        out.seek(0)
        found = read_answers([entry.name for entry in entries], read_header(out), out)
    contents["b.png"] = png((1, 2, 3))
    for at, name in ((0, "a.png"), (1, "b.png"), (5, "array")):
        expected = decode_image(name, contents[name], config)
        assert np.array_equal(found[at].pixels, expected.pixels)
        assert (found[at].mode, found[at].sha256, found[at].width) == (expected.mode, expected.sha256, expected.width)
    assert found[2:5] == [
        Refusal(name="gone", reason="No such file or directory"),
        Refusal(name="large", reason="1,001 bytes are more than images.max_file_bytes (1,000)"),
        Refusal(name="bad", reason="an HTML page, not an image"),
    ]
    assert isinstance(found[6], InputDataError)
    assert str(found[6]).startswith("wide is 5x4, not square")


def test_pixels_that_end_early_are_a_worker_that_is_gone():
    with pytest.raises(EOFError):
        read_answers(["a"], [[4, 4, 4, "RGB", "0"]], io.BytesIO(bytes(47)))
