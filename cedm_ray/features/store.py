"""FeatureStore: the features of an image set on disk, [N, D] float32, row i for image i.

A store is a folder that belongs to one key, the digest of (image set x extractor). It holds one file of at most
`shard_rows` rows per shard, and for each a record with its SHA-256, written last: a shard without a valid record and
the right checksum does not exist and is computed. Shards do not depend on each other, and batches are counted from
the start of a shard, so the bytes are the same whichever process computes a shard, in whichever order, after however
many interruptions. When there is more than one shard they are copied once into `features.npy`, which readers map;
the shards stay, for they are what is checked and what a damaged `features.npy` is rebuilt from.

Shapes: N images, B batch, D feature width.
Source: architecture.md, values that travel; reliability.md, faults 12, 16 and 17.
"""

import io
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cedm_ray.config import digest
from cedm_ray.data.decoding import printable
from cedm_ray.data.image_set import ImageSet
from cedm_ray.durable import (
    BROKEN_ARRAY,
    commit_file,
    is_temporary,
    read_record,
    sha256,
    sha256_file,
    storage_error,
    temporary_path,
    write_bytes,
    write_record,
)
from cedm_ray.errors import InputDataError, IntegrityError
from cedm_ray.features.feature_file import FeatureFile
from cedm_ray.features.network import Extractor

SHARD_ROWS = 8192
_NAMED_IMAGES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractProgress:
    """done: rows that exist, of `total` (N). note: what was found wrong with a shard and mended, or None."""

    done: int
    total: int
    note: str | None = None


def feature_key(images: ImageSet, extractor: Extractor) -> str:
    """SHA-256 (hex) that is equal exactly if the features are to be equal: image digest x extractor key."""
    return digest({"images": images.digest, "extractor": extractor.key})


def num_shards(num_images: int, shard_rows: int = SHARD_ROWS) -> int:
    """Number of shards of a store of N images."""
    return -(-num_images // shard_rows)


def extract_features(
    images: ImageSet, extractor: Extractor, folder: Path, *, batch_size: int, shard_rows: int = SHARD_ROWS
) -> Generator[ExtractProgress, None, np.ndarray]:
    """Compute whatever is missing in `folder` and return the features [N, D] (as StopIteration's value).

    Yields after every batch. Raises InputDataError for features that are not finite or all equal, StorageError where
    `folder` cannot be written.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    folder, total = Path(folder), len(images)
    done = 0
    for index in range(num_shards(total, shard_rows)):
        rows = _rows_of(index, total, shard_rows)
        fault = shard_fault(images, extractor, folder, index, shard_rows=shard_rows)
        if fault is not None:
            note = None if fault == "" else f"{_shard_path(folder, index)} is computed again: {fault}"
            if note:
                yield ExtractProgress(done=done, total=total, note=note)
            shard = extract_shard(images, extractor, folder, index, batch_size=batch_size, shard_rows=shard_rows)
            for shard_done in shard:
                yield ExtractProgress(done=done + shard_done, total=total)
        done += len(rows)
        yield ExtractProgress(done=done, total=total)
    return merge_shards(images, extractor, folder, shard_rows=shard_rows)


def shard_fault(
    images: ImageSet, extractor: Extractor, folder: Path, index: int, *, shard_rows: int = SHARD_ROWS
) -> str | None:
    """None for a shard that is there and valid, "" for one that was never finished, else what is wrong with it."""
    path = _shard_path(folder, index)
    try:
        record = read_record(path.with_suffix(".json"))
        if record["key"] != feature_key(images, extractor):
            return "it belongs to other images or another extractor"
        if record["rows"] != len(_rows_of(index, len(images), shard_rows)):
            return "it has another number of rows"
        return None if sha256_file(path) == record["sha256"] else "its checksum does not match its record"
    except FileNotFoundError:
        return "" if not path.with_suffix(".json").exists() else "its file is missing"
    except IntegrityError:
        return "its record is damaged"


def extract_shard(
    images: ImageSet,
    extractor: Extractor,
    folder: Path,
    index: int,
    *,
    batch_size: int,
    shard_rows: int = SHARD_ROWS,
) -> Generator[int, None, None]:
    """Compute shard `index` and make it durable, replacing what is there; yields its rows done after every batch.

    Shards may be computed at the same time by any number of processes. Raises as `extract_features`.
    """
    path = _shard_path(Path(folder), index)
    rows = _rows_of(index, len(images), shard_rows)
    features = np.empty((len(rows), extractor.dim), dtype=np.float32)
    for start in range(0, len(rows), batch_size):
        stop = min(start + batch_size, len(rows))
        found = slice(rows[start], rows[stop - 1] + 1)
        if isinstance(extractor, FeatureFile):
            features[start:stop] = extractor.rows[found]
        else:
            # A copy: the memory map is read-only and torch knows no such tensors.
            batch = torch.from_numpy(np.array(images.pixels[found]))
            features[start:stop] = extractor(batch.to(extractor.device)).cpu().numpy()
        yield stop
    _check_finite(features, images.names[rows.start : rows.stop], extractor.name)
    data = io.BytesIO()
    np.save(data, features, allow_pickle=False)
    # Without its record the shard does not exist, so that a record never speaks of another file's bytes.
    path.with_suffix(".json").unlink(missing_ok=True)
    write_bytes(path, data.getvalue())
    record = {"key": feature_key(images, extractor), "start": rows.start, "rows": len(rows)}
    write_record(path.with_suffix(".json"), {**record, "dim": extractor.dim, "sha256": sha256(data.getvalue())})


def merge_shards(images: ImageSet, extractor: Extractor, folder: Path, *, shard_rows: int = SHARD_ROWS) -> np.ndarray:
    """Bring a complete set of valid shards into the file that `open_features` maps, and open it.

    Raises InputDataError where all features are equal.
    """
    folder = Path(folder)
    key, count = feature_key(images, extractor), num_shards(len(images), shard_rows)
    shards = [read_record(_shard_path(folder, index).with_suffix(".json"))["sha256"] for index in range(count)]
    summary = {"key": key, "num_images": len(images), "dim": extractor.dim, "shards": shards}
    if not _is_merged(folder, summary):
        (folder / "features.json").unlink(missing_ok=True)
        merged_sha256 = None if count == 1 else _concatenate(folder, count, len(images), extractor.dim)
        write_record(folder / "features.json", {**summary, "sha256": merged_sha256})
    features = open_features(folder)
    _check_varied(features, extractor.name)
    return features


def open_features(folder: Path) -> np.ndarray:
    """The features of a finished store: float32 [N, D], a read-only memory map.

    Raises InputDataError where the store is not finished, IntegrityError where its file is not the one recorded.
    Checksums are compared by `extract_features`, not here.
    """
    folder = Path(folder)
    try:
        summary = read_record(folder / "features.json")
    except FileNotFoundError:
        mend = "run the extraction again; it continues where it stopped"
        raise InputDataError(f"the features in {folder.absolute()} are not finished", mend=mend) from None
    path = _shard_path(folder, 0) if summary["sha256"] is None else folder / "features.npy"
    expected = (summary["num_images"], summary["dim"])
    mend = "run the extraction again; it computes what is damaged"
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN_ARRAY as error:
        raise IntegrityError(f"{path} is not the file that was written: {error}", mend=mend) from None
    if features.shape != expected or features.dtype != np.float32:
        got = f"{features.dtype} {list(features.shape)}"
        raise IntegrityError(f"{path} holds {got}, its record says float32 {list(expected)}", mend=mend)
    return features


def _rows_of(index: int, num_images: int, shard_rows: int) -> range:
    count = num_shards(num_images, shard_rows)
    if not 0 <= index < count:
        raise ValueError(f"index must lie in [0, {count}), got {index}")
    return range(index * shard_rows, min((index + 1) * shard_rows, num_images))


def _shard_path(folder: Path, index: int) -> Path:
    return Path(folder) / f"shard-{index:05d}.npy"


def _is_merged(folder: Path, summary: dict) -> bool:
    try:
        record = read_record(folder / "features.json")
        if {**record, "sha256": None} != {**summary, "sha256": None}:
            return False
        return record["sha256"] is None or record["sha256"] == sha256_file(folder / "features.npy")
    except (FileNotFoundError, IntegrityError):
        return False


def _concatenate(folder: Path, count: int, num_images: int, dim: int) -> str:
    """Copy the shards, one at a time in memory, into features.npy; returns its SHA-256."""
    path = folder / "features.npy"
    temporary = temporary_path(path)
    try:
        for stale in folder.iterdir():
            if is_temporary(stale):
                stale.unlink()
        with open(temporary, "xb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (num_images, dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for index in range(count):
                file.write(np.load(_shard_path(folder, index), allow_pickle=False).tobytes())
        commit_file(temporary, path)
    except OSError as error:
        raise storage_error(error, path, num_images * dim * 4) from error
    finally:
        temporary.unlink(missing_ok=True)
    return sha256_file(path)


def _check_finite(features: np.ndarray, names: tuple[str, ...], extractor_name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        named = ", ".join(printable(names[row]) for row in bad[:_NAMED_IMAGES])
        more = ", ..." if len(bad) > _NAMED_IMAGES else ""
        raise InputDataError(
            f"{extractor_name} gives NaN or infinite features for {len(bad):,} of {len(names):,} images: {named}{more}",
            mend="look at these images, or choose another extractor",
        )


def _check_varied(features: np.ndarray, extractor_name: str) -> None:
    for start in range(0, len(features), SHARD_ROWS):
        if (features[start : start + SHARD_ROWS] != features[0]).any():
            return
    raise InputDataError(
        f"{extractor_name} gives the same features for all {len(features):,} images, so nothing can be clustered",
        mend="look at the images, or choose another extractor",
    )
