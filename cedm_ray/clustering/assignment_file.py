"""Assignments that come from outside, and ours on disk.

    FILE.npz or FILE.npz:KEY   one integer array [N]; without a KEY the file must have only one such
    FILE.parquet               a column `cluster`, `cluster_id` or `label`; one of `write_assignment` tells the rest too
    FILE.pt                    the official `cluster_ids.pt`: one tensor [N] of any integer type

Row i is the cluster of image i. Nothing is unpickled, and no id is changed: an id that is no whole number, negative or
too large is refused with its row.

Shapes: N images, C clusters. Source: method.md 5.2 (the official files and their traps).
"""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.config import canonical_json
from cedm_ray.data.torch_files import read_torch_file
from cedm_ray.durable import BROKEN_ARRAY, sha256, sha256_file, write_bytes
from cedm_ray.errors import InputDataError, IntegrityError

COLUMNS = ("cluster", "cluster_id", "label")
_KINDS = "a .npz (FILE.npz:KEY for one array of several), a .parquet, or the official cluster_ids.pt"
_NPZ = "save the ids alone, as whole numbers: numpy.savez(FILE, ids)"
_METADATA = b"cedm_ray"
_SCHEMA = 1
_LARGEST_ID = np.iinfo(np.int32).max - 1


def from_labels(
    labels: np.ndarray, *, num_clusters: int | None = None, method: str = "labels", provenance: dict | None = None
) -> ClusterAssignment:
    """An assignment made of given labels, such as the ground truth.

    labels: any integer type, [N], none negative. num_clusters: C; None = the largest label + 1. provenance: plain JSON
    values that say where the labels come from. Raises ValueError naming the first bad row.
    """
    fault = _fault(labels)
    if fault is not None:
        raise ValueError(f"labels {fault}")
    return ClusterAssignment(
        labels=labels.astype(np.int32),
        num_clusters=int(labels.max()) + 1 if num_clusters is None else num_clusters,
        method=method,
        provenance=provenance or {},
    )


def read_assignment(
    path: Path | str, *, num_images: int, num_clusters: int | None = None, names: Sequence[str] | None = None
) -> ClusterAssignment:
    """Read an assignment of `num_images` images from a file of the kinds in the module's docstring.

    num_clusters: C; None = what the file says, else the largest id + 1. names: of the images in row order; a Parquet
    file that has names must then have the same. Of a file that is not ours, the method is "imported" and the provenance
    says its name, its SHA-256 and where in it the ids were. Raises InputDataError for a file that is not there, holds
    no such ids, or is of other images; SecurityError for one that holds pickled objects; IntegrityError for one of ours
    that is damaged.
    """
    place, key = _split(str(path))
    if not place.is_file():
        raise InputDataError(
            f"there is no file {place.absolute()}", mend="give a .npz, a Parquet file or cluster_ids.pt"
        )
    if place.suffix == ".npz":
        ids, where = _from_npz(place, key, num_images)
    elif place.suffix in (".parquet", ".pq"):
        ids, where, ours = _from_parquet(place, names, num_images)
        if ours is not None:
            _check(ids, place, num_images, num_clusters)
            return _restored(ids, ours, place, num_clusters)
    elif place.suffix in (".pt", ".pth"):
        ids, where = _from_torch(place), "tensor"
    else:
        raise InputDataError(
            f"{place} is no assignment: its name ends in {place.suffix or 'nothing'}",
            mend=f"give {_KINDS}",
        )
    _check(ids, place, num_images, num_clusters)
    provenance = {"file": place.name, "sha256": sha256_file(place), "ids": where}
    return from_labels(ids, num_clusters=num_clusters, method="imported", provenance=provenance)


def write_assignment(path: Path, assignment: ClusterAssignment, names: Sequence[str]) -> None:
    """Write an assignment durably as Parquet: columns `name` and `cluster`, and all that is known about it.

    names: of the images, in row order. The schema's metadata hold one JSON text: method, num_clusters, num_used,
    provenance, and a SHA-256 over these, the names and the ids. Raises ValueError where there is not a name for each
    image, StorageError.
    """
    if len(names) != len(assignment.labels):
        raise ValueError(f"names must be one for each of {len(assignment.labels)} images, got {len(names)}")
    about = {
        "schema": _SCHEMA,
        "method": assignment.method,
        "num_clusters": assignment.num_clusters,
        "num_used": assignment.num_used,
        "provenance": assignment.provenance,
    }
    sealed = canonical_json({**about, "sha256": _digest(about, names, assignment.labels)})
    schema = pa.schema([("name", pa.string()), ("cluster", pa.int32())], metadata={_METADATA: sealed.encode()})
    table = pa.table([pa.array(names, pa.string()), pa.array(assignment.labels, pa.int32())], schema=schema)
    data = io.BytesIO()
    pq.write_table(table, data, write_page_checksum=True)
    write_bytes(Path(path), data.getvalue())


def _digest(about: dict[str, Any], names: Sequence[str], labels: np.ndarray) -> str:
    text = canonical_json({"about": about, "names": list(names)})
    return sha256(text.encode() + np.ascontiguousarray(labels, dtype="<i4").tobytes())


def _split(text: str) -> tuple[Path, str | None]:
    """A path, and the key after FILE.npz: if there is one."""
    before, separator, key = text.rpartition(".npz:")
    if separator and not Path(text).exists():
        return Path(f"{before}.npz").expanduser(), key
    return Path(text).expanduser(), None


def _from_npz(path: Path, key: str | None, num_images: int) -> tuple[np.ndarray, str]:
    mend = f"name one of its arrays: {path}:KEY"
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()}
    except BROKEN_ARRAY as error:
        raise InputDataError(f"{path} is no .npz file: {error}") from None
    fitting = sorted(name for name, (shape, kind) in shapes.items() if len(shape) == 1 and kind in "iu")
    if key is None:
        if not fitting:
            raise InputDataError(f"{path} has no integer array [N]: {_kinds(shapes) or 'it is empty'}", mend=_NPZ)
        if len(fitting) > 1:
            found = ", ".join(fitting[:5]) + (f" and {len(fitting) - 5} more" if len(fitting) > 5 else "")
            raise InputDataError(f"{path} has {len(fitting)} integer arrays [N]: {found}", mend=mend)
        (key,) = fitting
    elif key not in shapes:
        near = ", ".join(sorted(shapes)[:5])
        raise InputDataError(f"{path} has no array {key}; it has {near or 'none'}", mend=mend)
    elif shapes[key][1] == "O":
        raise InputDataError(f"{path}: {key} holds Python objects, which are never read", mend=_NPZ)
    if len(shapes[key][0]) == 1:
        # By its header, before anything of that size is made in memory.
        _check_count(shapes[key][0][0], path, num_images)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[key], key
    except BROKEN_ARRAY as error:
        raise InputDataError(f"{path}: {key} cannot be read: {error}") from None


def _kinds(shapes: dict[str, tuple[tuple[int, ...], str]]) -> str:
    """What a .npz file has instead, up to five arrays."""
    words = {"i": "whole numbers", "u": "whole numbers", "f": "fractions", "b": "true and false"}
    words |= {"O": "Python objects, which are never read", "U": "text", "S": "text"}
    told = [f"{name} {list(shape)} holds {words.get(kind, 'other things')}" for name, (shape, kind) in shapes.items()]
    return "; ".join(told[:5])


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], str]:
    """Shape and kind of NumPy type ("i", "u", "f", "O", ...) of an array in a .npz file."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype.kind


def _from_torch(path: Path) -> np.ndarray:
    mend = "save the tensor of ids alone: torch.save(ids, FILE)"
    content = read_torch_file(path, mend=mend)
    if not hasattr(content, "numpy"):
        raise InputDataError(f"{path} holds {type(content).__name__}, not one tensor [N]", mend=mend)
    try:
        return content.numpy()
    except (TypeError, RuntimeError) as error:
        raise InputDataError(f"{path}: its tensor is no array of integers: {error}", mend=mend) from None


def _from_parquet(
    path: Path, names: Sequence[str] | None, num_images: int
) -> tuple[np.ndarray, str, dict[str, Any] | None]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = file.schema_arrow.names
            column = next((name for name in COLUMNS if name in found), None)
            if column is None:
                raise InputDataError(
                    f"{path} has no column {' or '.join(COLUMNS)}; it has {', '.join(found[:10])}",
                    mend="rename the column of the ids to cluster",
                )
            _check_count(file.metadata.num_rows, path, num_images)
            table = file.read(columns=[name for name in ("name", column) if name in found])
    except (pa.ArrowException, OSError) as error:
        raise InputDataError(f"{path} cannot be read as Parquet: {str(error).partition(chr(10))[0]}") from None
    own_names = table["name"].to_pylist() if "name" in table.column_names else None
    values = table[column]
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise InputDataError(f"{path}: {column} is empty at row {row} ({values.null_count} such rows)")
    ids = values.to_numpy()
    ours = _about(table.schema.metadata, path)
    if ours is not None and _digest(ours[0], own_names or [], ids) != ours[1]:
        raise IntegrityError(f"{path} is damaged: its SHA-256 does not match", mend="write it again")
    if names is not None and own_names is not None and list(names) != own_names:
        _refuse_names(path, list(names), own_names)
    return ids, column, ours[0] if ours else None


def _about(metadata: dict[bytes, bytes] | None, path: Path) -> tuple[dict[str, Any], str] | None:
    """What `write_assignment` noted, and its SHA-256; None for a file of another program."""
    if not metadata or _METADATA not in metadata:
        return None
    try:
        about = json.loads(metadata[_METADATA])
        digest = about.pop("sha256")
        known = about["schema"] == _SCHEMA and {"method", "num_clusters", "provenance"} <= about.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise IntegrityError(f"{path} was written by cedm-ray, and what it says about itself cannot be read")
    return about, digest


def _refuse_names(path: Path, wanted: list[str], found: list[str]) -> None:
    row = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found)))
    here, there = (repr(names[row]) if row < len(names) else "no more images" for names in (found, wanted))
    raise InputDataError(
        f"{path} is an assignment of other images, or in another order: row {row} is {here}, here it is {there}",
        mend="give the assignment that belongs to these images",
    )


def _restored(ids: np.ndarray, about: dict[str, Any], path: Path, num_clusters: int | None) -> ClusterAssignment:
    if num_clusters is not None and num_clusters != about["num_clusters"]:
        raise InputDataError(f"{path} has {about['num_clusters']} clusters, and {num_clusters} were asked for")
    return from_labels(ids, num_clusters=about["num_clusters"], method=about["method"], provenance=about["provenance"])


def _check(ids: np.ndarray, path: Path, num_images: int, num_clusters: int | None) -> None:
    fault = _fault(ids)
    if fault is not None:
        raise InputDataError(f"{path}: the cluster ids {fault}")
    _check_count(len(ids), path, num_images)
    if num_clusters is not None and ids.max() >= num_clusters:
        row = int((ids >= num_clusters).argmax())
        raise InputDataError(f"{path}: the cluster ids must lie in [0, {num_clusters}), got {ids[row]} at row {row}")


def _check_count(count: int, path: Path, num_images: int) -> None:
    if count != num_images:
        raise InputDataError(
            f"{path} has {count:,} cluster ids and there are {num_images:,} images",
            mend="give the assignment that belongs to these images, in their order",
        )


def _fault(ids: np.ndarray) -> str | None:
    """What is wrong with an array as ids of clusters, or None."""
    if ids.ndim != 1 or ids.size == 0:
        return f"must be a non-empty vector [N], got shape {list(ids.shape)}"
    if ids.dtype.kind not in "iu":
        return f"must be integers, got {ids.dtype}"
    bad = (ids < 0) | (ids > _LARGEST_ID)
    if bad.any():
        row = int(bad.argmax())
        return f"must lie in [0, {_LARGEST_ID}], got {ids[row]} at row {row} ({int(bad.sum())} such rows)"
    return None
