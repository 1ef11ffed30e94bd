"""Generated images as files: a folder or a zip of PNG files named by their seeds, or one npz file; and one picture.

All are written as the images come, so that what is held in memory does not grow with their number. A folder also says
what its images were made of (`samples.json`), and goes on where it stopped: the same command makes only what is not
there.

n images, S image side.
"""

import contextlib
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from cedm_ray import durable
from cedm_ray.data.pictures import png, sample_grid
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.results import Notice, Progress, Show
from cedm_ray.search.sampling import Samples

ABOUT = "samples.json"
MAX_GRID = 4096
"""Images of one picture: those of a picture are held in memory."""

Generate = Callable[[Sequence[int]], Iterator[Samples]]
"""From seeds to their images, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of the seeds. found: images that were there already. kept: images made now. drawn: images generated
    for them. without: seeds that have no image, because none of their candidates was confident."""

    found: int
    kept: int
    drawn: int
    without: int


def sample_to_files(
    generate: Generate,
    seeds: Sequence[int],
    about: Mapping[str, Any],
    *,
    grid: Path | None,
    out: Path | None,
    show: Show,
) -> Tally:
    """Generate one image per seed and write a picture, the images, or both.

    about: what the images follow from besides their seeds, as plain values. out: as `write_samples`. A picture of no
    image is not written. Raises ConfigurationError for a folder with other images and for a picture of too many,
    StorageError.
    """
    if grid is not None and len(seeds) > MAX_GRID:
        mend = f"leave --grid away, or name at most {MAX_GRID:,} seeds"
        raise ConfigurationError(f"{len(seeds):,} images do not fit into one picture", mend=mend)
    folder = out if out is not None and out.suffix.lower() not in (".zip", ".npz") else None
    missing = seeds if folder is None else _missing(folder, seeds, about)
    if found := len(seeds) - len(missing):
        show(Notice(text=f"{found:,} of {len(seeds):,} images are in {folder.absolute()} already"))
    counts = {"decided": 0, "kept": 0, "drawn": 0}
    shown: dict[int, np.ndarray] = {}

    def told() -> Iterator[Samples]:
        for part in generate(missing):
            counts["decided"] += part.decided
            counts["kept"] += len(part.seeds)
            counts["drawn"] += part.drawn
            rejected = counts["drawn"] > counts["kept"]
            detail = f"kept {counts['kept']:,} of {counts['drawn']:,} drawn" if rejected else ""
            show(Progress(task="samples", done=counts["decided"], total=len(missing), unit="images", detail=detail))
            if grid is not None and folder is None:
                shown.update(zip(part.seeds.tolist(), part.images, strict=True))
            yield part

    if len(missing):
        write_samples(told(), out) if out is not None else _exhaust(told())
    show(Progress(task="samples", done=len(missing), total=len(missing), unit="images", ended=True))
    if grid is not None:
        if folder is not None:
            shown = {seed: _read(folder / _name(seed)) for seed in seeds if (folder / _name(seed)).exists()}
        if shown:
            _write_grid(grid, [shown[seed] for seed in seeds if seed in shown])
    without = len(missing) - counts["kept"]
    return Tally(found=found, kept=counts["kept"], drawn=counts["drawn"], without=without)


def write_samples(parts: Iterable[Samples], path: Path) -> None:
    """Write images as they are generated.

    parts: batches. path: `*.zip` (stored, not compressed, as PNG is already),
    `*.npz` (arrays `images` uint8 [n, S, S, 3], `seeds` int64 [n] and, of a conditional model, `clusters` int64 [n]),
    else a folder. A zip or npz appears when it is whole. Raises StorageError.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        with _appearing(path) as temporary:
            _write_npz(parts, temporary)
    elif path.suffix.lower() == ".zip":
        with _appearing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for part in parts:
                for name, data in _files(part).items():
                    archive.writestr(zipfile.ZipInfo(name), data)
    else:
        for part in parts:
            durable.write_files(path, _files(part))


def _name(seed: int) -> str:
    return f"{seed:08d}.png"


def _files(part: Samples) -> dict[str, bytes]:
    return {
        _name(seed): png(Image.fromarray(image.transpose(1, 2, 0)))
        for seed, image in zip(part.seeds.tolist(), part.images, strict=True)
    }


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).transpose(2, 0, 1)


def _missing(folder: Path, seeds: Sequence[int], about: Mapping[str, Any]) -> list[int]:
    """The seeds whose image is not in the folder, which is one for these images or becomes it."""
    try:
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise durable.storage_error(error, folder, 0) from error
    mend = "name another folder: --out"
    if ABOUT in names:
        before = durable.read_record(folder / ABOUT)
        if differing := [name for name in sorted({*before, *about}) if before.get(name) != about.get(name)]:
            text = f"{folder.absolute()} holds images of another {' and another '.join(differing)}"
            raise ConfigurationError(f"{text}, says {ABOUT}", mend=mend)
    elif any(re.fullmatch(r"\d{8,}\.png", name) for name in names):
        raise ConfigurationError(f"{folder.absolute()} holds images, and no {ABOUT} that says of what", mend=mend)
    else:
        durable.write_record(folder / ABOUT, about)
    return [seed for seed in seeds if _name(seed) not in names]


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends well."""
    temporary = durable.temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        durable.commit_file(temporary, path)
    except OSError as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        raise durable.storage_error(error, path, written) from error
    finally:
        # What stands in the way of the file stands in the way of its removal too; the first error is the one to tell.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_npz(parts: Iterable[Samples], path: Path) -> None:
    """The images go into a file beside the archive first: in it their number, which rejection leaves open, comes before
    them."""
    seeds: list[np.ndarray] = []
    clusters: list[np.ndarray] = []
    beside = path.with_suffix(".images.tmp")
    try:
        with open(beside, "xb") as raw:
            shape: tuple[int, ...] = (0, 0, 3)
            for part in parts:
                shape = (*part.images.shape[2:], 3)
                raw.write(np.ascontiguousarray(part.images.transpose(0, 2, 3, 1)).data)
                seeds.append(part.seeds)
                clusters += [] if part.clusters is None else [part.clusters]
        total = sum(map(len, seeds))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            with _member(archive, "images") as member, open(beside, "rb") as raw:
                _write_header(member, (total, *shape), np.dtype(np.uint8))
                while block := raw.read(1 << 20):
                    member.write(block)
            for name, arrays in (("seeds", seeds), ("clusters", clusters)):
                if arrays or name == "seeds":
                    values = np.concatenate([np.empty(0, dtype=np.int64), *arrays])
                    with _member(archive, name) as member:
                        _write_header(member, values.shape, values.dtype)
                        member.write(values.data)
    finally:
        beside.unlink(missing_ok=True)


def _member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    # Always as for more than 4 GiB, because that must be said first.
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
    descriptor = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descriptor, "fortran_order": False, "shape": shape})


def _write_grid(path: Path, images: list[np.ndarray]) -> None:
    durable.write_bytes(path, png(sample_grid(np.stack(images), math.ceil(math.sqrt(len(images))))))


def _exhaust(parts: Iterable[Samples]) -> None:
    for _ in parts:
        pass
