"""Decoding over a cluster: actors that read the source where they are, each with processes of its own to decode it.

Positions are handed out in groups and answered in any order; the answers are given on in the order of the source, so
that the set has the same bytes whatever the machines. Of a source that is not a folder or a plain tar, which only the
reader of its beginning can read, the driver sends the undecoded images. An actor that is lost is replaced, and
the groups that it had are decoded again.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from cedm_ray.config import canonical_json
from cedm_ray.data.decoding import Refusal, printable
from cedm_ray.data.decoding_pool import Decoded, DecodingPool, Piece, cut, decode_source, pieces, refusals
from cedm_ray.data.entries import Entry, Source
from cedm_ray.data.folders import FolderSource
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import Decode
from cedm_ray.data.sources import open_source
from cedm_ray.data.tars import TarSource
from cedm_ray.distributed.inventory import cluster_nodes
from cedm_ray.distributed.session import ray_cluster
from cedm_ray.errors import CedmError, InputDataError, TryAgainError
from cedm_ray.search.packing import Node
from cedm_ray.search.results import Notice, Show

LARGE_IMAGES, LARGE_BYTES = 200_000, 4 * 2**30
"""A source with less than both is decoded on this machine alone: that takes no longer than reaching the others."""
GROUP_IMAGES = 512
ACTOR_CPUS = 8
"""An actor lists the source once for so many cores."""
LOSSES = 3
"""So many actors may be lost with the same group under way, one after another."""
_UNDER_WAY = 2
_POLL_S = 2.0
_AS_THEY_LIE = ("image-set", "npy", "npz", "idx", "cifar", "digits")
"""Kinds of sources that are pixels already: to send them costs more than to take them."""

_MEND = (
    "put them where every machine finds them under the same path, or make a set of them on one machine first "
    "(cedm-ray images import) and give that as --images"
)

_Group = range | Sequence[Entry | Refusal]


@ray.remote(max_concurrency=_UNDER_WAY + 1)
class _DecodingActor:
    """A share of one machine's cores."""

    def __init__(self, config: dict[str, Any], cpus: int) -> None:
        self.config, self.cpus = ImagesConfig.model_validate(config), cpus

    def open(self) -> str:
        """List the source and start the processes. Returns what the driver's list of it must be equal to."""
        self.source = open_source(self.config)
        # Ends with this process.
        self.pool = DecodingPool(self.config, self.cpus).__enter__()
        return list_digest(self.source)

    def decode(self, group: _Group) -> tuple[list[Decoded], InputDataError | None]:
        """What came of a group, up to the error that ends it. Decoding again gives the same."""
        done: list[Decoded] = []
        try:
            done.extend(self.pool.decode(self._pieces(group)))
        except InputDataError as error:
            return done, error
        return done, None

    def _pieces(self, group: _Group) -> Iterator[Piece]:
        if isinstance(group, range):
            return pieces(self.source, group, self.config)
        share = -(-len(group) // self.cpus)
        return (group[start : start + share] for start in range(0, len(group), share))


def list_digest(source: Source) -> str:
    """SHA-256 (hex) of what a source lists, times of files aside: two copies of the same images are the same list."""
    hasher = hashlib.sha256(canonical_json([source.kind, len(source), source.labelled, source.size_bytes]).encode())
    hasher.update(canonical_json([[refusal.name, refusal.reason] for refusal in source.refused]).encode())
    names = iter(source.files)
    while some := list(itertools.islice(names, 1_000)):
        hasher.update("\0".join(map(str, some)).encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()


@contextlib.contextmanager
def cluster_decode(address: str | None, show: Show) -> Iterator[Decode]:
    """A Decode for `import_images`: over the cluster where one is named, has several machines, and the source is large;
    else on this machine.

    address: as `ray_cluster`; None without $RAY_ADDRESS: this machine. The cluster is joined when the source is there
    and known to be large, and left with the block.
    """
    with contextlib.ExitStack() as stack:

        def decode(source: Source, config: ImagesConfig) -> Iterator[Decoded]:
            if is_large(source) and (address or os.environ.get("RAY_ADDRESS")):
                stack.enter_context(ray_cluster(address))
                nodes = [node for node in cluster_nodes().nodes if node.cpus >= 1]
                if len(nodes) > 1:
                    show(Notice(text=f"{len(source):,} images are decoded on {len(nodes)} machines"))
                    return decode_on_actors(source, config, actor_cpus(nodes))
            return decode_source(source, config)

        yield decode


def is_large(source: Source) -> bool:
    """Whether a source is worth the cluster: 200,000 images or 4 GiB of them, and not yet pixels."""
    enough = len(source) >= LARGE_IMAGES or source.size_bytes >= LARGE_BYTES
    return enough and source.kind not in _AS_THEY_LIE


def actor_cpus(nodes: Sequence[Node]) -> list[int]:
    """The cores of each actor: all of every machine's, at most eight to an actor."""
    return [min(ACTOR_CPUS, int(node.cpus) - start) for node in nodes for start in range(0, int(node.cpus), ACTOR_CPUS)]


def decode_on_actors(source: Source, config: ImagesConfig, cpus: Sequence[int]) -> Iterator[Decoded]:
    """`decode_source` on the connected cluster.

    cpus: the cores of each actor, at least 1. Raises InputDataError as `decode_source` does, and where a machine cannot
    read the source or finds another list of images there; TryAgainError where actors are lost again and again.
    """
    yield from refusals(source)
    run = _Run(source, config)
    try:
        for cores in cpus:
            run.start(cores)
        yield from run.decode()
    finally:
        for actor in run.cores:
            ray.kill(actor)


class _Run:
    """What the driver keeps in mind. cores: of each living actor."""

    def __init__(self, source: Source, config: ImagesConfig) -> None:
        where = config.source
        if where is not None:
            where = str(Path(where).expanduser().absolute())
        self.settings = config.model_copy(update={"source": where}).model_dump(mode="json")
        self.source, self.expected = source, list_digest(source)
        self.cores: dict[Any, int] = {}
        self._opening: dict[Any, Any] = {}
        self._free: list[Any] = []
        self._calls: dict[Any, tuple[Any, int]] = {}
        self._groups = enumerate(_groups(source, config))
        # Groups that are not given on yet, and how many actors were lost with each under way.
        self._kept: dict[int, _Group] = {}
        self._losses: dict[int, int] = {}
        self._again: list[int] = []
        self._early: dict[int, tuple[list[Decoded], InputDataError | None]] = {}
        self._due, self._more = 0, True

    def start(self, cores: int) -> None:
        """Ask for an actor. One that finds no place holds up nothing."""
        actor = _DecodingActor.options(num_cpus=cores, scheduling_strategy="SPREAD").remote(self.settings, cores)
        self.cores[actor] = cores
        self._opening[actor.open.remote()] = actor

    def decode(self) -> Iterator[Decoded]:
        """The answers to all groups in order."""
        while True:
            while self._free and (number := self._next()) is not None:
                actor = self._free.pop(0)
                self._calls[actor.decode.remote(self._kept[number])] = actor, number
            if not (self._more or self._kept):
                return
            answered, _ = ray.wait([*self._calls, *self._opening], num_returns=1, timeout=_POLL_S)
            for call in answered:
                self._take(call)
            while self._due in self._early:
                done, error = self._early.pop(self._due)
                del self._kept[self._due]
                self._due += 1
                yield from done
                if error is not None:
                    raise error

    def _next(self) -> int | None:
        """The group to hand out, if there is one; not far ahead of what is due, so that early answers stay few."""
        if self._again:
            self._again.sort()
            return self._again.pop(0)
        if not self._more or len(self._kept) >= 2 * _UNDER_WAY * len(self.cores):
            return None
        number, group = next(self._groups, (0, None))
        self._more = group is not None
        if group is None:
            return None
        self._kept[number] = group
        return number

    def _take(self, call: Any) -> None:
        """The answer to a call, or the loss of whoever should have given it."""
        if call in self._opening:
            actor = self._opening.pop(call)
            answer = self._ask(call, actor)
            if answer is not None and answer != self.expected:
                raise InputDataError(
                    f"another machine of the cluster finds other images at {printable(self.source.location)} than this "
                    "one",
                    mend=_MEND,
                )
            self._free += [actor] * _UNDER_WAY if answer is not None else []
        elif call in self._calls:
            actor, number = self._calls[call]
            answer = self._ask(call, actor)
            if answer is not None:
                del self._calls[call]
                self._early[number] = answer
                self._free.append(actor)

    def _ask(self, call: Any, actor: Any) -> Any | None:
        """What was answered; None where the actor is lost."""
        try:
            return ray.get(call)
        except RayTaskError as error:
            if not isinstance(error.cause, CedmError):
                raise
            if call in self._calls:
                raise error.cause from error
            raise InputDataError(
                f"a machine of the cluster cannot read the images: {error.cause}", mend=_MEND
            ) from error
        except RayActorError as error:
            self._lose(actor, error)
            return None

    def _lose(self, actor: Any, error: RayActorError) -> None:
        """Replace an actor, and decode again what it had under way."""
        self._free = [one for one in self._free if one is not actor]
        for call, (owner, number) in list(self._calls.items()):
            if owner is not actor:
                continue
            del self._calls[call]
            self._losses[number] = self._losses.get(number, 0) + 1
            if self._losses[number] >= LOSSES:
                raise TryAgainError(
                    f"{LOSSES} processes that decoded the same images were lost: {error}",
                    mend="run the same command again: an import that was cut short is begun again",
                ) from error
            self._again.append(number)
        self.start(self.cores.pop(actor))


def _groups(source: Source, config: ImagesConfig) -> Iterator[_Group]:
    """Positions where a source is read by position at no cost, else the undecoded images themselves."""
    everything = range(len(source.files))
    if not source.streamed and isinstance(source, FolderSource | TarSource):
        for some in cut(zip(everything, source.sizes_bytes, strict=True), config, GROUP_IMAGES):
            yield range(some[0], some[-1] + 1)
    else:
        yield from pieces(source, everything, config, GROUP_IMAGES)
