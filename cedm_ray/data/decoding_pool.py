"""Decoding on several cores, in the order of the source, with the same result on any number of them.

Workers are processes of their own (`decoding_worker.py`), because decoding small images is mostly Python. Each gets a
piece, answers it and gets the next; files of a folder it reads itself. At the most two pieces a worker are on their
way, each of at most 128 images, and of at most 8 MiB before and after decoding (or one larger image), so memory does
not depend on the number of images. A worker that dies, of a decoder's fault, is replaced, and the image that killed it
is refused by its name.
"""

import contextlib
import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from cedm_ray.data.decoding import Refusal, SourceImage, decode_image
from cedm_ray.data.decoding_worker import pack, read_answers, read_header, write_message
from cedm_ray.data.entries import Entry, Source, UnreadEntry
from cedm_ray.data.folders import FolderSource
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.errors import InputDataError

PIECE_IMAGES = 128
PIECE_BYTES = 8 * 2**20
MIN_IMAGES, MIN_BYTES = 4_000, 64 * 2**20
"""A source with less than both is decoded in this process: starting the others takes as long."""
MAX_WORKERS = 32
PIPE_BYTES = 2**20
"""A piece of small images fits in, so that neither side waits for the other in the middle of it."""

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cedm_ray.data.decoding_worker import main; main()"
)
Piece = Sequence[Entry | UnreadEntry | Refusal]
_T = TypeVar("_T")


class Decoded(NamedTuple):
    """image: one answer of the decoder. label: of its entry, None without any and for a refusal."""

    image: SourceImage | Refusal
    label: int | None


def num_workers(num_images: int, size_bytes: int) -> int:
    """How many processes decode so many images of so many bytes together where nobody says it: one for each core that
    this process may use; 0, which is this process itself, for a small source or one core."""
    cores = len(os.sched_getaffinity(0))
    small = num_images < MIN_IMAGES and size_bytes < MIN_BYTES
    return 0 if small or cores == 1 else min(cores, MAX_WORKERS)


class EarlyPool:
    """Workers that start while a source is still being listed, once it is known to hold many images; they end with the
    block. pool: None while there are none.

    workers: as `decode_source`.
    """

    def __init__(self, config: ImagesConfig, workers: int | None) -> None:
        self._config, self._workers = config, workers
        self._stack = contextlib.ExitStack()
        self.pool: DecodingPool | None = None

    def __enter__(self) -> "EarlyPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def listed(self, num_images: int) -> None:
        """Be told how many images there are at least."""
        if self.pool is None and num_images >= MIN_IMAGES:
            workers = num_workers(num_images, 0) if self._workers is None else self._workers
            if workers:
                self.pool = self._stack.enter_context(DecodingPool(self._config, workers))


def decode_source(
    source: Source, config: ImagesConfig, *, workers: int | None = None, pool: "DecodingPool | None" = None
) -> Iterator[Decoded]:
    """Every image and refusal of a source, in its order.

    workers: processes beside this one; 0 = none, None = as `num_workers`. pool: such as have been started for `config`
    already; they are used instead, and left. Raises InputDataError as `decode_image`, at
    the place of the image that it names, and as the source does.
    """
    if pool is not None:
        yield from refusals(source)
        yield from pool.decode(pieces(source, range(len(source.files)), config))
        return
    if workers is None:
        workers = num_workers(len(source), source.size_bytes)
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if workers == 0:
        for entry in source:
            yield _decoded(
                entry if isinstance(entry, Refusal) else decode_image(entry.name, entry.content, config), entry
            )
        return
    with DecodingPool(config, workers) as own:
        yield from decode_source(source, config, pool=own)


def refusals(source: Source) -> Iterator[Decoded]:
    """What was refused when a source was listed."""
    return (Decoded(image=refusal, label=None) for refusal in source.refused)


def pieces(source: Source, positions: range, config: ImagesConfig, most_images: int | None = None) -> Iterator[Piece]:
    """The files of a source at these places, cut into pieces. A folder's are not read here."""
    if isinstance(source, FolderSource):
        sized = zip(source.unread_at(positions), source.sizes_bytes[positions.start : positions.stop], strict=True)
    else:
        sized = ((entry, _length(entry)) for entry in source.at(positions))
    return cut(sized, config, most_images or PIECE_IMAGES)


def cut(items: Iterable[tuple[_T, int]], config: ImagesConfig, most_images: int) -> Iterator[list[_T]]:
    """Images in groups of at most so many, and of at most 8 MiB: as they lie there, and decoded as far as `config.size`
    tells it. items: each with its length in bytes."""
    if config.size is not None:
        most_images = max(1, min(most_images, PIECE_BYTES // (3 * config.size**2)))
    group: list[_T] = []
    size_bytes = 0
    for item, length in items:
        if group and (len(group) == most_images or size_bytes + length > PIECE_BYTES):
            yield group
            group, size_bytes = [], 0
        group.append(item)
        size_bytes += length
    if group:
        yield group


def _length(entry: Entry | Refusal) -> int:
    if isinstance(entry, Refusal):
        return 0
    return len(entry.content) if isinstance(entry.content, bytes) else entry.content.nbytes


def _decoded(image: SourceImage | Refusal, entry: Entry | UnreadEntry | Refusal) -> Decoded:
    return Decoded(image=image, label=None if isinstance(image, Refusal) else entry.label)


class DecodingPool:
    """Workers, and a thread for each that speaks with it; `decode` may be called by several threads at once."""

    def __init__(self, config: ImagesConfig, workers: int) -> None:
        self._config, self._count = config, workers
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._alive: list[_Worker] = []
        self._ending = False

    def __enter__(self) -> "DecodingPool":
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="decoding")
        try:
            for _ in range(self._count):
                self._idle.put(self._start())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        for worker in list(self._alive):
            worker.stop()
        self._threads.shutdown(cancel_futures=True)
        # A thread may have replaced one in between.
        for worker in self._alive:
            worker.stop()

    def _start(self) -> "_Worker":
        worker = _Worker(self._config)
        self._alive.append(worker)
        return worker

    def decode(self, pieces: Iterable[Piece]) -> Iterator[Decoded]:
        """The answers to all pieces in order. Raises InputDataError as `decode_image`, at its place."""
        under_way: deque[Future] = deque()
        for piece in pieces:
            under_way.append(self._threads.submit(self._decode_piece, piece))
            if len(under_way) > 2 * self._count:
                yield from _results(under_way.popleft())
        while under_way:
            yield from _results(under_way.popleft())

    def _decode_piece(self, piece: Piece) -> tuple[list[Decoded], InputDataError | None]:
        """What came of a piece, up to the error that ends it."""
        answered = self._ask([entry for entry in piece if not isinstance(entry, Refusal)])
        done: list[Decoded] = []
        for entry in piece:
            image = entry if isinstance(entry, Refusal) else next(answered)
            if isinstance(image, InputDataError):
                return done, image
            done.append(_decoded(image, entry))
        return done, None

    def _ask(self, entries: Sequence[Entry | UnreadEntry]) -> Iterator[SourceImage | Refusal | InputDataError]:
        """The answers to entries, all of them read before this returns."""
        if not entries:
            return iter(())
        worker = self._idle.get()
        try:
            return iter(worker.ask(entries))
        except (OSError, EOFError, ValueError):
            if self._ending:
                raise
            ended = worker.ended()
            self._alive.remove(worker)
            worker = self._start()
        finally:
            self._idle.put(worker)
        if len(entries) > 1:
            # One of them did it: each is asked alone.
            return iter([answer for entry in entries for answer in self._ask([entry])])
        return iter([Refusal(name=entries[0].name, reason=f"the decoder died of it ({ended})")])


def _results(future: Future) -> Iterator[Decoded]:
    done, error = future.result()
    yield from done
    if error is not None:
        raise error


class _Worker:
    """A decoding process and its pipes."""

    def __init__(self, config: ImagesConfig) -> None:
        # The worker imports what this process imports, from where it does.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl+C at the terminal is for this process, which ends the workers.
            process_group=0,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            # Where the system allows no more, they stay as they are.
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        with contextlib.suppress(OSError):
            write_message(self._process.stdin, [config.model_dump(mode="json")], [])

    def ask(self, entries: Sequence[Entry | UnreadEntry]) -> list[SourceImage | Refusal | InputDataError]:
        """The answers to entries; an InputDataError is the last. OSError, EOFError, ValueError: the worker is gone."""
        packed = [pack(entry) for entry in entries]
        write_message(self._process.stdin, [item for item, _ in packed], [data for _, data in packed])
        answers = read_header(self._process.stdout)
        if answers is None:
            raise EOFError
        return read_answers([entry.name for entry in entries], answers, self._process.stdout)

    def stop(self) -> int:
        """End the process; its exit code."""
        # It has nothing to lose.
        self._process.kill()
        code = self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        return code

    def ended(self) -> str:
        """How a process that is gone ended, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self.stop()
        try:
            return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except ValueError:
            return f"signal {-code}"
