"""A reader of the few pickles that hold nothing but plain values and uint8 arrays: the batches of CIFAR-10 and 100.

Nothing is unpickled: Python's `pickle` is not used, no name is looked up, no code runs. The opcodes of dictionaries,
lists, tuples, numbers, text and bytes are read by hand, and three names are understood by what they stand for (an
array, its type, bytes that Python 3 wrote for Python 2). Any other opcode or name is refused, unread.

Source: PEP 307 and the comments of CPython's `pickletools` for the meaning of each opcode; NumPy's
`ndarray.__reduce__` and `__setstate__` for the parts of an array.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from cedm_ray.data.decoding import printable
from cedm_ray.errors import InputDataError, SecurityError

MAX_STEPS = 2_000_000
"""Opcodes in one file, each of which may make an object. CIFAR-100's longest file has 150,000 values."""
_VIEW_BYTES = 2**20

_ARRAY, _TYPE, _BYTES = "an array", "a type", "bytes"
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _TYPE,
    ("_codecs", "encode"): _BYTES,
}
_MARK = object()


class _Damaged(Exception):
    """What makes a file no pickle."""


@dataclass(slots=True, eq=False)
class _Name:
    """One of _NAMES. makes: what it gives when it is called, None where it only stands as an argument."""

    makes: str | None


@dataclass(slots=True, eq=False)
class _Type:
    """The type of an array's values; only uint8 is let through."""


@dataclass(slots=True, eq=False)
class _Array:
    """An array, empty until its state is read."""

    value: np.ndarray | None = None


def read_plain_pickle(data: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle of protocol 2 to 4, its keys as text, arrays among its values as uint8 arrays.

    where: the file, for messages. Raises SecurityError for anything but plain values and uint8 arrays, InputDataError
    for what is damaged or no dictionary.
    """
    try:
        found = _Reader(data, where).read()
    except (_Damaged, IndexError, KeyError, TypeError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise InputDataError(
            f"{printable(where)} is a damaged pickle ({printable(str(error)) or type(error).__name__})",
            mend="fetch it again from https://www.cs.toronto.edu/~kriz/cifar.html",
        ) from None
    if not isinstance(found, dict):
        raise InputDataError(f"{printable(where)} holds no dictionary")
    plain: dict[str, Any] = {}
    for key, value in found.items():
        text = bytes(key).decode("latin-1") if isinstance(key, bytes | memoryview) else str(key)
        plain[text] = value.value if isinstance(value, _Array) else value
    return plain


class _Reader:
    """The stack machine, with no more than it needs."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._view, self._at, self._where = data, memoryview(data), 0, where
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        for _ in range(MAX_STEPS):
            start = self._at
            code = self._take(1)
            if code == b".":
                return self._stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise self._refuse(f"the opcode {code!r} at byte {start:,}")
            step(self)
        raise self._refuse(f"more than {MAX_STEPS:,} opcodes")

    def _refuse(self, what: str) -> SecurityError:
        return SecurityError(
            f"{printable(self._where)} has {what}, which plain values do not need; it was not read",
            mend="fetch the file again from where it was published; do not open it with Python's pickle",
        )

    # Bytes of the file --------------------------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if len(data) < count:
            raise _Damaged("it ends early")
        self._at += count
        return data

    def _string(self, length: int) -> bytes | memoryview:
        if length > len(self._data) - self._at:
            raise _Damaged("it ends early")
        self._at += length
        piece = self._view[self._at - length : self._at]
        return piece if length > _VIEW_BYTES else bytes(piece)

    def _line(self) -> str:
        end = self._data.index(b"\n", self._at, self._at + 200)
        line = self._data[self._at : end].decode("ascii")
        self._at = end + 1
        return line

    def _unsigned(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    # What opcodes do ----------------------------------------------------------------------------------------------

    def skip(self, count: int) -> None:
        self._take(count)

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_unsigned(self, count: int) -> None:
        self.push(self._unsigned(count))

    def push_signed(self) -> None:
        self.push(struct.unpack("<i", self._take(4))[0])

    def push_string(self, length_bytes: int) -> None:
        self.push(self._string(self._unsigned(length_bytes)))

    def push_text(self, length_bytes: int) -> None:
        self.push(str(self._string(self._unsigned(length_bytes)), "utf-8", "surrogatepass"))

    def put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def get(self, key: int) -> None:
        self.push(self._memo[key])

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise _Damaged("its stack is too short")
        at = len(self._stack) - count
        self._stack[at:] = [tuple(self._stack[at:])]

    def _pop_to_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                return values
        raise _Damaged("a mark is missing")

    def tuple_to_mark(self) -> None:
        self.push(tuple(self._pop_to_mark()))

    def append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise _Damaged("something is appended to no list")
        target.extend(values)

    def append_to_mark(self) -> None:
        self.append(self._pop_to_mark())

    def set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise _Damaged("something is set in no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes):
                raise _Damaged("a key is no text")
            target[key] = value

    def set_items_to_mark(self) -> None:
        self.set_items(self._pop_to_mark())

    def name(self, module: str, name: str) -> None:
        if (module, name) not in _NAMES:
            raise self._refuse(f"the name {module}.{name}")
        self.push(_Name(_NAMES[module, name]))

    def name_from_lines(self) -> None:
        self.name(self._line(), self._line())

    def name_from_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if not isinstance(called, _Name) or called.makes is None or not isinstance(arguments, tuple):
            raise self._refuse("a call of something that is no array")
        if called.makes == _ARRAY:
            self.push(_Array())
        elif called.makes == _TYPE:
            if arguments[0] not in (b"u1", "u1"):
                raise self._refuse(f"an array of {arguments[0]!r}")
            self.push(_Type())
        else:
            text, encoding = arguments
            if encoding not in ("latin1", b"latin1"):
                raise self._refuse(f"bytes in {encoding!r}")
            self.push(text.encode("latin-1"))

    def build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, _Type):
            return
        if not isinstance(target, _Array):
            raise self._refuse("the state of something that is no array")
        _, shape, kind, fortran_order, content = state
        whole = all(isinstance(side, int) and side >= 0 for side in shape)
        if not isinstance(kind, _Type) or not whole or fortran_order or math.prod(shape) != len(content):
            raise _Damaged("an array's shape and bytes do not fit")
        target.value = np.frombuffer(content, dtype=np.uint8).reshape(shape)


_STEPS = {
    b"\x80": lambda r: r.skip(1),  # the protocol
    b"\x95": lambda r: r.skip(8),  # the length of a frame
    b"(": lambda r: r.push(_MARK),
    b"}": lambda r: r.push({}),
    b"]": lambda r: r.push([]),
    b")": lambda r: r.push(()),
    b"N": lambda r: r.push(None),
    b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False),
    b"K": lambda r: r.push_unsigned(1),
    b"M": lambda r: r.push_unsigned(2),
    b"J": lambda r: r.push_signed(),
    b"U": lambda r: r.push_string(1),
    b"T": lambda r: r.push_string(4),
    b"C": lambda r: r.push_string(1),
    b"B": lambda r: r.push_string(4),
    b"\x8e": lambda r: r.push_string(8),
    b"\x8c": lambda r: r.push_text(1),
    b"X": lambda r: r.push_text(4),
    b"\x8d": lambda r: r.push_text(8),
    b"q": lambda r: r.put(r._unsigned(1)),
    b"r": lambda r: r.put(r._unsigned(4)),
    b"\x94": lambda r: r.put(len(r._memo)),
    b"h": lambda r: r.get(r._unsigned(1)),
    b"j": lambda r: r.get(r._unsigned(4)),
    b"\x85": lambda r: r.tuple_of(1),
    b"\x86": lambda r: r.tuple_of(2),
    b"\x87": lambda r: r.tuple_of(3),
    b"t": lambda r: r.tuple_to_mark(),
    b"a": lambda r: r.append([r._stack.pop()]),
    b"e": lambda r: r.append_to_mark(),
    b"s": lambda r: r.set_items([r._stack.pop(-2), r._stack.pop()]),
    b"u": lambda r: r.set_items_to_mark(),
    b"c": lambda r: r.name_from_lines(),
    b"\x93": lambda r: r.name_from_stack(),
    b"R": lambda r: r.call(),
    b"b": lambda r: r.build(),
}
