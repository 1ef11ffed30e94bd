"""The process that decodes a share of an import; `decoding_pool.py` starts it.

It reads chunks of undecoded images from its standard input and answers each on its standard output, until the input
ends: with the process that started it, however that dies. Nothing is pickled in between. A message is the length of a
JSON header (8 bytes, little-endian), the header, and the bytes that it speaks of, one after another.

Shapes: S image side.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from cedm_ray.data.decoding import ImagesConfig, Refusal, SourceImage, decode_without_warnings, forbid_warnings
from cedm_ray.errors import InputDataError


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


def pack(content: bytes | np.ndarray) -> tuple[list[Any], bytes]:
    """An entry's content as ([length in bytes, shape or null], bytes)."""
    if isinstance(content, bytes):
        return [len(content), None], content
    return [content.nbytes, list(content.shape)], content.tobytes()


def _answer(items: list[Any], source: BinaryIO, config: ImagesConfig) -> tuple[list[Any], list[bytes]]:
    """The answers to [name, length, shape or null] each, and the pixels. An error ends the list."""
    contents = [source.read(length) for _, length, _ in items]
    answers: list[Any] = []
    pixels: list[bytes] = []
    for (name, _, shape), content in zip(items, contents, strict=True):
        if shape is not None:
            content = np.frombuffer(content, dtype=np.uint8).reshape(shape)
        try:
            image = decode_without_warnings(name, content, config)
        except InputDataError as error:
            answers.append({"error": str(error), "mend": error.mend})
            break
        if isinstance(image, Refusal):
            answers.append(image.reason)
        else:
            answers.append([image.pixels.shape[-1], image.width, image.height, image.mode, image.sha256])
            pixels.append(image.pixels.tobytes())
    return answers, pixels


def unpack(name: str, answer: Any, file: BinaryIO) -> SourceImage | Refusal:
    """An answer with its name and, from `file`, its pixels. Raises the InputDataError that the worker met."""
    if isinstance(answer, dict):
        raise InputDataError(answer["error"], mend=answer["mend"])
    if isinstance(answer, str):
        return Refusal(name=name, reason=answer)
    size, width, height, mode, sha256 = answer
    data = file.read(3 * size * size)
    if len(data) < 3 * size * size:
        raise EOFError
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(3, size, size)
    return SourceImage(name=name, pixels=pixels, width=width, height=height, mode=mode, sha256=sha256)


def main() -> None:
    """Answer until the input ends."""
    source, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a decoder may print must not stand between the answers.
    os.dup2(2, 1)
    settings = read_header(source)
    if settings is None:
        return
    config = ImagesConfig.model_validate(settings[0])
    forbid_warnings()
    while (items := read_header(source)) is not None:
        answers, pixels = _answer(items, source, config)
        try:
            write_message(out, answers, pixels)
        except BrokenPipeError:
            return
