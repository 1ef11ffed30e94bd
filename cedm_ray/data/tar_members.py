"""The members of a tar, one after another, as POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU tar write them.

Only what is needed to read regular files is understood, everything has a bound, and nothing is extracted: a header of
512 bytes with its checksum; a pax header's path and size; a GNU long name. A member of another type than a regular file
comes with the reason for which it is not read.

Source: POSIX.1-2017, pax, "ustar interchange format" and "pax extended header".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
MAX_EXTENDED_BYTES = 64 * 1024
"""The most that a long name or a pax header may have."""

_REASONS = {
    b"1": "a hard link, which is not followed",
    b"2": "a symbolic link, which is not followed",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _FOLDER = b"x", b"g", b"L", b"K", b"5"


class TarError(ValueError):
    """What is wrong with an archive as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """name: as stored, bytes that are not UTF-8 as escapes. offset, size_bytes: of its content in the archive. time_s:
    of its last change. reason: why it is not read; None for a regular file. is_folder: whether it is a folder."""

    name: str
    offset: int
    size_bytes: int
    time_s: int
    reason: str | None
    is_folder: bool


def tar_members(file: BinaryIO) -> Iterator[TarMember]:
    """Every member of an archive that is open at its beginning; `file` may be read and moved between two members.

    Raises TarError for a damaged header, an oversized one, or an archive that ends early, OSError as `file` does.
    """
    offset = 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    while True:
        header = _read(file, offset, BLOCK)
        if not any(header):
            return
        _check_sum(header, offset)
        kind = header[156:157]
        size = _number(header[124:136], offset)
        if "size" in pax:
            size = _decimal(pax["size"], offset)
        if size < 0:
            raise TarError(f"the header at byte {offset:,} has a negative size")
        data = offset + BLOCK
        following = data + -(-size // BLOCK) * BLOCK
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            if size > MAX_EXTENDED_BYTES:
                raise TarError(f"the extended header at byte {offset:,} has {size:,} bytes, more than is allowed")
            content = _read(file, data, size) if size else b""
            if kind == _PAX:
                pax = _records(content, offset)
            elif kind == _LONG_NAME:
                long_name = _text(content.rstrip(b"\0"))
            offset = following
            continue
        reason = None
        if kind not in (b"0", b"\0", b"7", _FOLDER):
            reason = _REASONS.get(kind, "not a regular file")
        elif any(key.startswith("GNU.sparse.") for key in pax):
            reason = "a sparse file"
        # Old archives mark a folder by the slash alone.
        name = pax.get("path") or long_name or _name(header)
        is_folder = kind == _FOLDER or (kind == b"\0" and name.endswith("/"))
        # The size in a link's or a device's header says nothing about what follows.
        follows = size if kind in (b"0", b"\0", b"7", b"S") or reason == "not a regular file" else 0
        yield TarMember(
            name=name,
            offset=data,
            size_bytes=follows,
            time_s=_number(header[136:148], offset),
            reason=reason,
            is_folder=is_folder,
        )
        offset = data + -(-follows // BLOCK) * BLOCK
        long_name, pax = None, {}


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    data = file.read(count)
    if len(data) < count:
        raise TarError(f"it ends at byte {offset + len(data):,}, before its last block")
    return data


def _check_sum(header: bytes, offset: int) -> None:
    """The sum of the header's bytes with the checksum's own as spaces."""
    if _number(header[148:156], offset) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise TarError(f"the header at byte {offset:,} is damaged: its checksum does not match")


def _number(field: bytes, offset: int) -> int:
    """An octal number, or GNU's binary one for what octal digits cannot hold."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise TarError(f"the header at byte {offset:,} has {field!r} where a number should be")
    return int(digits, 8)


def _decimal(text: str, offset: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise TarError(f"the pax header before byte {offset:,} has a size that is no number")
    return int(text)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    # GNU tar keeps other things where ustar keeps the prefix of the name.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _records(content: bytes, offset: int) -> dict[str, str]:
    """The `LENGTH KEY=VALUE` lines of a pax header."""
    records: dict[str, str] = {}
    at = 0
    while at < len(content):
        length, space, _ = content[at : at + 12].partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(content) - at:
            raise TarError(f"the pax header at byte {offset:,} is damaged")
        key, equals, value = content[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        if not equals:
            raise TarError(f"the pax header at byte {offset:,} is damaged")
        records[_text(key)] = _text(value)
        at += int(length)
    return records
