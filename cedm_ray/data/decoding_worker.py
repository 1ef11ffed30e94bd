"""The process that decodes a share of an import; `decoding_pool.py` starts it.

It reads pieces of undecoded images from its standard input and answers each on its standard output, until the input
ends: with the process that started it, however that dies. Nothing is pickled in between. A message is the length of a
JSON header (8 bytes, little-endian), the header, and the bytes that it speaks of, one after another. Of a file in a
folder the path is sent, and it is read here.

Shapes: S image side.
"""

import json
import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cedm_ray.data.decoding import Refusal, SourceImage, decode_without_warnings, forbid_warnings
from cedm_ray.data.entries import Entry, UnreadEntry
from cedm_ray.data.files import read_file
from cedm_ray.errors import InputDataError

if TYPE_CHECKING:
    from cedm_ray.data.images_config import ImagesConfig


def write_message(file: BinaryIO, header: Any, parts: Sequence[bytes | memoryview]) -> None:
    """Write one message; `parts` are the bytes behind the header."""
    text = json.dumps(header).encode()
    # At once: small writes would wake the reader for each.
    file.write(b"".join((len(text).to_bytes(8, "little"), text, *parts)))
    file.flush()


def read_header(file: BinaryIO) -> Any | None:
    """The header of the next message; None where there is none any more."""
    length = file.read(8)
    if len(length) < 8:
        return None
    text = file.read(int.from_bytes(length, "little"))
    return json.loads(text) if text.endswith(b"]") else None


def pack(entry: Entry | UnreadEntry) -> tuple[list[Any], bytes]:
    """An entry as ([name, length in bytes, shape or null], bytes), or ([name, path], no bytes)."""
    if isinstance(entry, UnreadEntry):
        return [entry.name, entry.path], b""
    if isinstance(entry.content, bytes):
        return [entry.name, len(entry.content), None], entry.content
    return [entry.name, entry.content.nbytes, list(entry.content.shape)], entry.content.tobytes()


def _answer(items: list[Any], source: BinaryIO, config: "ImagesConfig") -> tuple[list[Any], list[memoryview]]:
    """The answers to what `pack` packed, and the pixels. An error ends the list."""
    contents = [None if isinstance(item[1], str) else _content(item, source) for item in items]
    answers: list[Any] = []
    pixels: list[memoryview] = []
    for (name, where, *_), content in zip(items, contents, strict=True):
        if content is None:
            content = read_file(where, config)
            if isinstance(content, str):
                answers.append(content)
                continue
        try:
            image = decode_without_warnings(name, content, config)
        except InputDataError as error:
            answers.append({"error": str(error), "mend": error.mend})
            break
        if isinstance(image, Refusal):
            answers.append(image.reason)
        else:
            answers.append([image.pixels.shape[-1], image.width, image.height, image.mode, image.sha256])
            pixels.append(image.pixels.data)
    return answers, pixels


def _content(item: list[Any], source: BinaryIO) -> bytes | np.ndarray:
    _, length, shape = item
    content = source.read(length)
    return content if shape is None else np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_answers(
    names: Sequence[str], answers: Sequence[Any], file: BinaryIO
) -> list[SourceImage | Refusal | InputDataError]:
    """The answers to images of these names and, from `file`, their pixels; an InputDataError that the worker met is the
    last. Raises EOFError where pixels are missing."""
    length = sum(3 * answer[0] ** 2 for answer in answers if isinstance(answer, list))
    data = np.frombuffer(file.read(length), np.uint8)
    if len(data) < length:
        raise EOFError
    found: list[SourceImage | Refusal | InputDataError] = []
    start = 0
    for name, answer in zip(names, answers, strict=False):
        if isinstance(answer, dict):
            found.append(InputDataError(answer["error"], mend=answer["mend"]))
        elif isinstance(answer, str):
            found.append(Refusal(name=name, reason=answer))
        else:
            size, width, height, mode, sha256 = answer
            end = start + 3 * size * size
            found.append(SourceImage(name, data[start:end].reshape(3, size, size), width, height, mode, sha256))
            start = end
    return found


def main() -> None:
    """Answer until the input ends."""
    source, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a decoder may print must not stand between the answers.
    os.dup2(2, 1)
    settings = read_header(source)
    if settings is None:
        return
    # Checked where it came from.
    config = SimpleNamespace(**settings[0])
    forbid_warnings()
    while (items := read_header(source)) is not None:
        answers, pixels = _answer(items, source, config)
        try:
            write_message(out, answers, pixels)
        except BrokenPipeError:
            return
