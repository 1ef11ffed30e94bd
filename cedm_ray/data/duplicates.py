"""Which images of a source are copies of others: exactly, or to the eye.

*Exact* copies have the same pixels: the same 128-bit BLAKE2b digest of side and pixels.

*Near* copies are the same picture after a re-encoding, a change of brightness or contrast, another size, or a shift of
one pixel. They are found in two steps, so that not every pair is looked at:

1. A perceptual hash of 64 bits: the image is brought to 32x32, and the bits are the signs of the 64 lowest
   coefficients but the constant one of the discrete cosine transform of its central 30x30 grey values (as in C. Zauner,
   "Implementation and benchmarking of perceptual image hash functions", 2010, with signs instead of a median). A
   coefficient counts as positive above 5 % of the mean magnitude, because a symmetric picture has coefficients that are
   zero but for noise. Each image has the hash of its center and of four windows that are a pixel off; one of the eight
   directions of a shift is one of these four for one of both images. Two images are candidates where a hash of one
   differs from the center's hash of the other in at most MAX_BITS bits. They are looked up in tables: the 64 bits are
   eight blocks, and each three of them make a table (G. S. Manku et al., "Detecting near-duplicates for web crawling",
   2007). Two hashes that differ in at most five bits have three blocks in common and always meet; those that differ in
   6, 8, 10 bits do in 90, 53, 23 % of the cases, if the bits lie anyhow. In a table an image is compared with the
   WINDOW entries that follow it under its key, so the work is N log N whatever the images are.
2. A candidate is confirmed at 32x32: the correlation of the grey values of both windows must be MIN_CORRELATION or
   more, and of their colors (Cb and Cr in 4x4 cells) the quarter that differs most must differ by at most MAX_COLOR
   levels on average.

What that means for false alarms: the hashes of two unrelated photographs differ in 32 bits on average, and step 2
leaves of the few that come within ten bits only pictures of one object in one pose on one background, such as frames
of a video, a product before white, or a small figure and the same in another color. Whether such a pair is a copy is
for a person to say; therefore near copies are told and never removed. Images with next to no contrast (a standard
deviation below MIN_CONTRAST grey levels) have no near copies. `benchmarks/inspect_images.py` measures both errors.

Memory: 56 bytes an image and its number; the small pictures lie in a temporary file of 1,056 bytes an image.

Shapes: N images, S image side.
"""

import array
import hashlib
import itertools
import tempfile
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_BITS = 10
MIN_CORRELATION = 0.92
MAX_COLOR = 12.0
MIN_CONTRAST = 2.0
WINDOW = 32

_SIDE, _CELLS, _WINDOW_SIDE = 32, 4, 30
_RECORD_BYTES = _SIDE**2 + 2 * _CELLS**2
# Where a window begins: the central one, then a pixel further. The other four directions are these, seen from the
# other image.
_STARTS = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 0))
_BATCH = 256
_PAIRS_AT_ONCE = 4096
_DEAD_ZONE = 0.05
# The frequencies (down, across) of the 64 bits: by their sum, the constant left out.
_FREQUENCIES = sorted(itertools.product(range(11), repeat=2), key=lambda pair: (sum(pair), pair))[1:65]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Groups of numbers of images, each group ascending and of at least two, ordered by their first number.

    exact: images of equal pixels. near: images that look alike, linked pair by pair, so that the first and the last of
    a group need not; of images of equal pixels only the first is in them. num_flat: images with next to no contrast.
    """

    exact: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, ...], ...]
    num_flat: int


class DuplicateFinder:
    """Takes images one by one and then says which are copies. A context manager: it holds a temporary file."""

    def __init__(self) -> None:
        self._numbers = array.array("q")
        self._digests = bytearray()
        self._hashes = array.array("Q")
        self._flat = bytearray()
        self._pending = bytearray()
        self._file = tempfile.TemporaryFile(prefix="cedm-ray-")  # noqa: SIM115 - closed by __exit__.

    def __enter__(self) -> "DuplicateFinder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, number: int, pixels: np.ndarray) -> None:
        """Take one image. number: any that names it, each once. pixels: uint8 [3, S, S]. OSError where the folder for
        temporary files is full."""
        digest = hashlib.blake2b(f"{pixels.shape[-1]}|".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        self._numbers.append(number)
        self._digests += digest.digest()
        self._pending += _miniature(pixels)
        if len(self._pending) == _BATCH * _RECORD_BYTES:
            self._hash_pending()

    def _hash_pending(self) -> None:
        if not self._pending:
            return
        grey = _greys(np.frombuffer(self._pending, np.uint8).reshape(-1, _RECORD_BYTES))
        self._hashes.frombytes(perceptual_hashes(grey).tobytes())
        self._flat += (grey.std((1, 2)) < MIN_CONTRAST).tobytes()
        self._file.write(self._pending)
        # A new one, because an array still looks into the old one.
        self._pending = bytearray()

    def find(self) -> Duplicates:
        """The copies among all images taken so far."""
        self._hash_pending()
        count = len(self._numbers)
        if count == 0:
            return Duplicates(exact=(), near=(), num_flat=0)
        numbers = np.array(self._numbers, np.int64)
        hashes = np.array(self._hashes, np.uint64).reshape(count, len(_STARTS))
        groups = _group(_equal_rows(np.frombuffer(bytes(self._digests), np.uint64).reshape(count, 2)), numbers)
        repeated = np.isin(numbers, [number for group in groups for number in group[1:]])
        flat = np.frombuffer(bytes(self._flat), bool)
        kept = np.flatnonzero(~(flat | repeated))
        self._file.flush()
        records = np.memmap(self._file, np.uint8, "r", shape=(count, _RECORD_BYTES))
        pairs = _confirmed(records, kept, _candidates(hashes[kept]))
        links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
        near = _group(connected_components(links, directed=False)[1], numbers)
        return Duplicates(exact=groups, near=near, num_flat=int(flat.sum()))


def perceptual_hashes(grey: np.ndarray) -> np.ndarray:
    """The five hashes of each image, as the module's docstring says: float [N, 32, 32] to uint64 [N, 5]."""
    down, across = np.array(_FREQUENCIES).T
    places = (np.arange(_WINDOW_SIDE) + 0.5) * np.pi / _WINDOW_SIDE
    # [11, 30]; all but the constant row, which is not used, have one norm, so no scale is needed.
    cosines = np.cos(np.arange(11)[:, None] * places).astype(np.float32)
    # Row and column 0 are of another norm than the others in an orthonormal transform.
    cosines[0] /= np.sqrt(2)
    powers = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))
    hashes = np.empty((len(grey), len(_STARTS)), np.uint64)
    for column, window in enumerate(_windows(grey)):
        coefficients = (cosines @ window @ cosines.T)[:, down, across]
        threshold = _DEAD_ZONE * np.abs(coefficients).mean(1, keepdims=True)
        hashes[:, column] = ((coefficients > threshold) * powers).sum(1, dtype=np.uint64)
    return hashes


def _miniature(pixels: np.ndarray) -> bytes:
    """One record: 32x32 grey values, then 4x4 of Cb and of Cr."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert("YCbCr")
    small = image if image.width == _SIDE else image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    cells = image.resize((_CELLS, _CELLS), Image.Resampling.BOX)
    return b"".join([small.tobytes()[::3], cells.tobytes()[1::3], cells.tobytes()[2::3]])


def _greys(records: np.ndarray) -> np.ndarray:
    return records[:, : _SIDE**2].reshape(-1, _SIDE, _SIDE).astype(np.float32)


def _windows(grey: np.ndarray) -> list[np.ndarray]:
    return [grey[:, y : y + _WINDOW_SIDE, x : x + _WINDOW_SIDE] for y, x in _STARTS]


def _equal_rows(rows: np.ndarray) -> np.ndarray:
    """A label for each row of [N, 2], the same for equal rows."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    ordered = rows[order]
    labels = np.empty(len(rows), np.int64)
    labels[order] = np.cumsum(np.r_[False, (ordered[1:] != ordered[:-1]).any(1)])
    return labels


def _group(labels: np.ndarray, numbers: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The numbers of each label that at least two have."""
    counts = np.bincount(labels)
    shared = np.flatnonzero(counts[labels] > 1)
    shared = shared[np.argsort(labels[shared], kind="stable")]
    ends = np.flatnonzero(np.diff(labels[shared])) + 1
    groups = [tuple(sorted(numbers[part].tolist())) for part in np.split(shared, ends) if len(part)]
    return tuple(sorted(groups))


def _candidates(hashes: np.ndarray) -> np.ndarray:
    """Pairs within MAX_BITS, int64 [pairs, 3]: the image of the shifted window, the other one, which window."""
    count = len(hashes)
    if count < 2:
        return np.empty((0, 3), np.int64)
    entries = hashes.T.ravel()
    found = np.empty(0, np.int64)
    for blocks in itertools.combinations(range(8), 3):
        mask = np.uint64(sum(0xFF << (8 * block) for block in blocks))
        keys = entries & mask
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        left = np.arange(len(keys) - 1)
        met = [found]
        for lag in range(1, WINDOW + 1):
            # Whoever shares its key with the entry `lag` further on does so with all in between.
            left = left[left + lag < len(keys)]
            left = left[keys[left] == keys[left + lag]]
            if not left.size:
                break
            first, second = order[left], order[left + lag]
            # Equal keys stand in the order of their entries, so the second's window is never before the first's.
            fits = (first < count) & (first != second % count)
            fits &= np.bitwise_count(entries[first] ^ entries[second]) <= MAX_BITS
            met.append(second[fits] * count + first[fits])
        found = np.unique(np.concatenate(met))
    shifted, center = np.divmod(found, count)
    return np.stack([shifted % count, center, shifted // count], 1)


def _confirmed(records: np.ndarray, kept: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Those candidates that look alike, as pairs of places in `records`: int64 [pairs, 2]."""
    pairs = []
    for start in range(0, len(candidates), _PAIRS_AT_ONCE):
        shifted, center, window = candidates[start : start + _PAIRS_AT_ONCE].T
        sides = records[kept[shifted]], records[kept[center]]
        ours = np.stack(_windows(_greys(sides[0])), 1)[np.arange(len(window)), window]
        alike = _correlations(ours, _windows(_greys(sides[1]))[0]) >= MIN_CORRELATION
        colors = [side[:, _SIDE**2 :].astype(np.float32) for side in sides]
        # The quarter that differs most, because what is colored is often a figure on a ground without color.
        differences = np.sort(np.abs(colors[0] - colors[1]), 1)
        alike &= differences[:, -differences.shape[1] // 4 :].mean(1) <= MAX_COLOR
        pairs.append(np.stack([kept[shifted[alike]], kept[center[alike]]], 1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each pair of windows, [pairs, 30, 30] twice to [pairs]; none is flat."""
    a, b = (side - side.mean((1, 2), keepdims=True) for side in (a, b))
    return (a * b).sum((1, 2)) / np.maximum(np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2))), 1e-6)
