import io

import numpy as np
import pytest

from cedm_ray.data.decoding import ImagesConfig, Refusal, decode_image
from cedm_ray.data.decoding_worker import main, pack, read_header, unpack, write_message
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
    config = ImagesConfig(size=4)
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    contents = {"a.png": png((9, 8, 7)), "bad": b"<html>", "array": grey, "wide": np.zeros((4, 5, 3), np.uint8)}
    asked = io.BytesIO()
    write_message(asked, [config.model_dump(mode="json")], [])
    packed = [pack(content) for content in contents.values()]
    write_message(
        asked,
        [[name, *header] for name, (header, _) in zip(contents, packed, strict=True)],
        [data for _, data in packed],
    )
    asked.seek(0)
    with open(tmp_path / "out", "wb+") as out:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(asked))
        monkeypatch.setattr("os.dup", lambda _: out.fileno())
        monkeypatch.setattr("os.dup2", lambda *_: None)
        monkeypatch.setattr("os.fdopen", lambda *_: out)
        main()
        out.seek(0)
        answers = read_header(out)
        for name in ("a.png", "array"):
            found = unpack(name, answers[list(contents).index(name)], out)
            expected = decode_image(name, contents[name], config)
            assert np.array_equal(found.pixels, expected.pixels)
            assert (found.mode, found.sha256, found.width) == (expected.mode, expected.sha256, expected.width)
    assert unpack("bad", answers[1], out) == Refusal(name="bad", reason="an HTML page, not an image")
    with pytest.raises(InputDataError, match="wide is 5x4, not square"):
        unpack("wide", answers[3], out)
