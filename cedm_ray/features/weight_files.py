"""Weights on disk: where they lie, how they come there, and whether they are still what they were.

Files that we download lie in one folder of the user's: `CEDM_RAY_CACHE` where it is set, else `cedm-ray` below
`XDG_CACHE_HOME`, else `~/.cache/cedm-ray`. A file that was put there by hand is taken as if it had been downloaded.
Beside each lies its SHA-256 (`sha256sum -c` reads it): that of the table where the publisher states one, else that of
the first use, so that a file which changes later is noticed. What comes from the Hugging Face hub is found in that
hub's own cache too, and looked for there before anything is asked of the network.
"""

import http.client
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cedm_ray.durable import commit_file, sha256_file, storage_error, temporary_path, write_bytes
from cedm_ray.errors import InputDataError, IntegrityError

# A host that is there answers within this time; one that is not is given up after it.
_CONNECT_S = 5.0
_READ_S = 30.0
_CHUNK_BYTES = 1 << 20
_WHERE_NAMED = (
    "features.weights or evaluation.weights (cedm-ray evaluate: --weights, cedm-ray cluster --method clip: "
    "--clip-weights)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebFile:
    """A weight file that its authors publish. name: in our folder. sha256: in hex, or None where none is stated."""

    name: str
    url: str
    sha256: str | None = None


def cache_folder() -> Path:
    """The folder of the user's in which downloaded weights lie; it need not exist yet."""
    named = os.environ.get("CEDM_RAY_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    parent = os.environ.get("XDG_CACHE_HOME")
    return (Path(parent) if parent else Path.home() / ".cache").absolute() / "cedm-ray"


def given_file(path: Path) -> Path:
    """A weight file that the user names, absolute. Raises InputDataError where there is none."""
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        mend = f"name the file with {_WHERE_NAMED}"
        raise InputDataError(f"there is no weight file {path}", mend=mend)
    return path


def fetch(file: WebFile, what: str) -> Path:
    """The place of a published file, downloaded where it is not there yet; it appears there as a whole.

    what: whose weights they are, for messages. Raises InputDataError where it is neither there nor to be had, saying
    what to put where; IntegrityError where its SHA-256 is not that of the table or of its first use; StorageError.
    """
    path = cache_folder() / file.name
    if not path.is_file():
        _download(file, path, what)
    _check(path, file.sha256)
    return path


def _download(file: WebFile, path: Path, what: str) -> None:
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path, 0) from error
    try:
        _copy(file.url, temporary)
        if file.sha256 is not None and (found := sha256_file(temporary)) != file.sha256:
            raise IntegrityError(
                f"{file.url} has the SHA-256 {found}, not {file.sha256}; it was not kept",
                mend="another file is published there now: do not use it before you know why",
            )
        commit_file(temporary, path)
    except (OSError, http.client.HTTPException) as error:
        # urllib's own errors have the cause inside, and ours is about the network and not about the disk.
        reason = getattr(error, "reason", error)
        raise InputDataError(
            f"the weights of {what} are not at {path} and cannot be downloaded: {reason}",
            mend=f"where there is a network download {file.url} and put it there; or name a file you have with "
            f"{_WHERE_NAMED}",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _copy(url: str, target: Path) -> None:
    """Write what `url` sends to `target`. Raises OSError, also where it ends before its stated length."""
    with urllib.request.urlopen(url, timeout=_READ_S) as response, open(target, "xb") as file:
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
        stated, received = response.headers.get("Content-Length"), file.tell()
    if stated is not None and received != int(stated):
        raise OSError(f"the connection ended after {received:,} of {int(stated):,} bytes")


def check_sha256(path: Path, stated: str | None, mend: str) -> str:
    """The SHA-256 of a file in hex. stated: what it must be; None = anything. Raises IntegrityError with `mend`."""
    found = sha256_file(path)
    if stated is not None and found != stated:
        raise IntegrityError(f"{path} has the SHA-256 {found}, not {stated}", mend=mend)
    return found


def _check(path: Path, stated: str | None) -> None:
    note = path.with_name(f"{path.name}.sha256")
    mend = f"remove it to have it downloaded again; a file of your own is named with {_WHERE_NAMED}"
    if stated is None and note.is_file():
        stated = note.read_text(encoding="ascii", errors="replace").split(" ")[0].strip()
        mend = f"remove it to have it downloaded again (and {note.name} beside it, if you changed it on purpose)"
    found = check_sha256(path, stated, mend)
    if not note.is_file():
        write_bytes(note, f"{found}  {path.name}\n".encode())


# The Hugging Face hub -----------------------------------------------------------------------------------------------


def hub_file(repository: str, names: Sequence[str], *, kept_as: str, what: str) -> Path:
    """One of the files `names` of a hub repository, the first that exists.

    repository: OWNER/NAME, or OWNER/NAME@REVISION. kept_as: the name, without ending, under which our own folder may
    hold it instead. Looked for there, then in the hub's cache, then on the network, which is first tried with one
    connection: the hub's own client would try for most of a minute. Raises InputDataError saying what to put where.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        own = cache_folder() / f"{kept_as}{Path(name).suffix}"
        if own.is_file():
            _check(own, None)
            return own
    repository, _, revision = repository.partition("@")
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return _intact_blob(Path(cached))
    reason: object = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if reason is None:
        for name in names:
            try:
                path = huggingface_hub.hf_hub_download(repository, name, revision=revision or None)
            except Exception as error:
                # Whatever the hub's client and what lies below it raise, it was this file that could not be had. Only
                # where the hub itself answers that it has no such file is the next name asked for.
                reason = error
                if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                    break
            else:
                return _intact_blob(Path(path))
    first_line = str(reason).strip().partition("\n")[0]
    own = cache_folder() / f"{kept_as}{Path(names[0]).suffix}"
    url = f"{constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/{names[0]}"
    raise InputDataError(
        f"the weights of {what} are neither at {own} nor in {constants.HF_HUB_CACHE}, and cannot be downloaded: "
        f"{first_line}",
        mend=f"where there is a network download {url} and put it at {own}; or name a file you have with "
        f"{_WHERE_NAMED}",
    )


def _intact_blob(path: Path) -> Path:
    """`path`, where the hub's cache names its content by a SHA-256 and it is of that. Raises IntegrityError."""
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and sha256_file(blob) != blob.name:
        raise IntegrityError(f"{blob} is damaged: its SHA-256 is not its name", mend=f"remove {blob} and {path}")
    return path


def unreachable(url: str) -> OSError | None:
    """Why no connection to the host of `url` (or to the proxy that stands before it) can be made; None if it can."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        return error
    return None
