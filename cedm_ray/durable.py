"""The one place that makes bytes durable: atomic, checksummed writes and reads, and checkpoints.

A write is: temporary file beside the target, flush, fsync, rename, fsync of the folder. Whoever dies in between leaves
a hidden temporary file and the old state; nothing torn is ever visible under a real name. Every format carries a
SHA-256: records (JSON) and tensors (safetensors) inside the file, checkpoints (a folder) in a manifest that is renamed
in last. Nothing is ever unpickled.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from cedm_ray.config import canonical_json
from cedm_ray.errors import IntegrityError, StorageError

SCHEMA = 1
MANIFEST = "manifest.json"
_FLUSHES_AT_ONCE = 16
BROKEN_ARRAY = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy raises for an .npy or .npz that is no whole one: it reads a header as a literal of Python, tokenizes it
where that fails, and makes an array of whatever shape it states."""


def temporary_path(path: Path) -> Path:
    """A fresh hidden name beside `path`; a file left under such a name was never acknowledged and is ignored."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether `path` is named as an unfinished write."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`, durably: when this returns, a power cut does not undo it.

    Parent folders are made. Raises StorageError where the storage is full, read-only or missing; the old content, if
    there was any, is then still there.
    """
    path = Path(path)
    _write_renamed(path, data)
    with _storage_errors(path, len(data)):
        _sync_folder(path.parent)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """As `write_bytes` for many files of one folder, by their names: a disk flushes them together, which takes a tenth
    of the time. Where it fails, each file is whole or is not there. StorageError."""
    folder = Path(folder)
    with ThreadPoolExecutor(_FLUSHES_AT_ONCE) as pool:
        writes = [pool.submit(_write_renamed, folder / name, data) for name, data in files.items()]
    for write in writes:
        write.result()
    if files:
        with _storage_errors(folder, sum(map(len, files.values()))):
            _sync_folder(folder)


def _write_renamed(path: Path, data: bytes) -> None:
    temporary = temporary_path(path)
    with _storage_errors(path, len(data)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
            _rename_flushed(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _storage_errors(path: Path, needed_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, needed_bytes) from error


def commit_file(temporary: Path, path: Path) -> None:
    """Make a fully written temporary file durable under its real name: fsync, rename, fsync of the folder."""
    _rename_flushed(temporary, path)
    _sync_folder(path.parent)


def _rename_flushed(temporary: Path, path: Path) -> None:
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error: OSError, path: Path, needed_bytes: int) -> StorageError:
    """`error` in the user's words. needed_bytes: size of what could not be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
        reason = f"the storage is full: {needed_bytes:,} bytes needed, {free:,} free"
    mend = "make room or mount the storage, then run the same command again: everything acknowledged is kept"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        mend = "something else is in the way: name another path"
    return StorageError(f"cannot write {path.absolute()}: {reason}", mend=mend)


def check_writable(folder: Path) -> None:
    """Make `folder` if need be and write a marker in it, so that bad storage is found before any work. StorageError."""
    marker = Path(folder) / ".writable"
    write_bytes(marker, b"")
    marker.unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Records ------------------------------------------------------------------------------------------------------------


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write a plain mapping as an immutable record: JSON with its SHA-256 inside.

    Writing the same record again does nothing. Raises IntegrityError where another content is already acknowledged
    under that name, StorageError as `write_bytes`, ValueError where the mapping holds NaN or infinity.
    """
    path = Path(path)
    data = canonical_json(value)
    if path.exists():
        if canonical_json(read_record(path)) != data:
            raise IntegrityError(f"{path} is already recorded with another content; records never change")
        return
    write_bytes(path, _seal(data))


def replace_record(path: Path, value: Mapping[str, Any]) -> None:
    """As `write_record`, for the few files that state the present (`exit.json`) and not what happened."""
    write_bytes(Path(path), _seal(canonical_json(value)))


def _seal(data: str) -> bytes:
    digest = sha256(data.encode())
    return f'{{"schema":{SCHEMA},"sha256":"{digest}","data":{data}}}\n'.encode()


def read_record(path: Path) -> dict[str, Any]:
    """Read a record and check its SHA-256. Raises FileNotFoundError, or IntegrityError naming the file."""
    path = Path(path)
    text = path.read_bytes()
    try:
        sealed = json.loads(text)
        data, digest = sealed["data"], sealed["sha256"]
        intact = isinstance(data, dict) and sha256(canonical_json(data).encode()) == digest
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise IntegrityError(
            f"{path} was acknowledged and is damaged ({len(text):,} bytes, checksum does not match)",
            mend="restore it from a backup, or begin another study",
        )
    return data


# Tensors ------------------------------------------------------------------------------------------------------------


def pack_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    """safetensors bytes of named arrays; the header carries the SHA-256 of the arrays and `metadata` as JSON."""
    # Not ascontiguousarray, which would give a scalar a dimension.
    arrays = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    text = canonical_json(metadata)
    # One key, because safetensors writes several in any order, and equal tensors are to give equal bytes.
    header = {"cedm_ray": canonical_json({"sha256": _digest_arrays(arrays, text), "metadata": text})}
    return safetensors.numpy.save(arrays, metadata=header)


def unpack_tensors(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Undo `pack_tensors`. `name` is for the message of the IntegrityError that damaged bytes raise."""
    try:
        arrays = safetensors.numpy.load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["cedm_ray"])
        intact = _digest_arrays(arrays, header["metadata"]) == header["sha256"]
        metadata = json.loads(header["metadata"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{name} is not a whole safetensors file of ours ({error})") from None
    if not intact:
        raise IntegrityError(f"{name} is damaged: its checksum does not match")
    return arrays, metadata


def _digest_arrays(arrays: Mapping[str, np.ndarray], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(memoryview(np.atleast_1d(array)).cast("B") if array.size else b"")
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write named arrays as one safetensors file. Raises as `write_bytes`."""
    write_bytes(Path(path), pack_tensors(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_tensors` wrote. Raises FileNotFoundError, or IntegrityError naming the file."""
    return unpack_tensors(Path(path).read_bytes(), str(path))


# Checkpoints --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A valid checkpoint that was read. fallbacks: newer ones that were passed over, each with the reason."""

    folder: Path
    manifest: dict[str, Any]
    files: dict[str, bytes]
    fallbacks: tuple[str, ...] = ()


def write_checkpoint(folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Write a checkpoint: its files, then a manifest with `manifest`, their sizes and SHA-256, renamed in last.

    Without the manifest the folder is no checkpoint. An existing checkpoint of that name is replaced. StorageError.
    """
    folder = Path(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, data in files.items():
        write_bytes(folder / name, data)
    listing = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()}
    write_record(folder / MANIFEST, {**manifest, "files": listing})
    _sync_folder(folder.parent)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint and check every file against the manifest. Raises IntegrityError naming what is wrong."""
    folder = Path(folder)
    try:
        manifest = read_record(folder / MANIFEST)
    except FileNotFoundError:
        raise IntegrityError(f"{folder} has no manifest: it was never finished") from None
    files = {}
    for name, expected in manifest["files"].items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise IntegrityError(f"{folder / name}: {error.strerror}") from None
        if len(data) != expected["bytes"]:
            raise IntegrityError(f"{folder / name} has {len(data):,} bytes, the manifest says {expected['bytes']:,}")
        if sha256(data) != expected["sha256"]:
            raise IntegrityError(f"{folder / name} is damaged: its checksum does not match the manifest's")
        files[name] = data
    return Checkpoint(folder=folder, manifest=manifest, files=files)


def newest_checkpoint(parent: Path) -> Checkpoint | None:
    """The newest valid checkpoint below `parent` (names sort by age), or None where there never was one.

    A damaged one is passed over and named in `fallbacks`. Raises IntegrityError where all are damaged.
    """
    fallbacks: list[str] = []
    for folder in reversed(_finished_checkpoints(parent)):
        try:
            found = read_checkpoint(folder)
        except IntegrityError as error:
            fallbacks.append(str(error))
            continue
        return Checkpoint(folder=folder, manifest=found.manifest, files=found.files, fallbacks=tuple(fallbacks))
    if fallbacks:
        raise IntegrityError(
            "no valid checkpoint is left: " + "; ".join(fallbacks),
            mend=f"remove {parent} to train this trial again from its start",
        )
    return None


def keep_checkpoints(parent: Path, count: int) -> None:
    """Remove all but the `count` newest finished checkpoints, and whatever was never finished."""
    kept = set(_finished_checkpoints(parent)[-count:])
    for folder in sorted(Path(parent).iterdir()):
        if folder.is_dir() and folder not in kept:
            # Without its manifest it is no checkpoint any more, whatever happens to the rest of the removal.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _finished_checkpoints(parent: Path) -> list[Path]:
    return sorted(path.parent for path in Path(parent).glob(f"*/{MANIFEST}"))
