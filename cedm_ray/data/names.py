"""Many names one after another in one piece of memory: as strings they would take three times as much."""

import array
from collections.abc import Iterable, Sequence
from typing import overload


class Names(Sequence[str]):
    """Names by position, as a tuple has them; equal to any sequence of the same names.

    A name is any text that a path can be; bytes that are no UTF-8 are kept as Python spells them in paths.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text, self._ends = bytearray(), array.array("q", [0])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self._text += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[str, ...]: ...
    def __getitem__(self, position):
        if isinstance(position, slice):
            return tuple(self[index] for index in range(*position.indices(len(self))))
        if not -len(self) <= position < len(self):
            raise IndexError(f"there is no name {position} among {len(self)}")
        position %= len(self)
        end = self._ends[position + 1]
        return self._text[self._ends[position] : end].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._ends == other._ends and self._text == other._text
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None
