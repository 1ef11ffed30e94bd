"""Feature extraction over a cluster: plain actors, each with its own shards of the image set."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cedm_ray.data.image_set import ImageSet, open_image_set
from cedm_ray.distributed.inventory import cluster_nodes
from cedm_ray.distributed.session import REPEATABLE, get
from cedm_ray.distributed.tasks import choose_device, located
from cedm_ray.errors import TryAgainError
from cedm_ray.features.extractors import Extractor, FeaturesConfig, open_extractor
from cedm_ray.features.store import SHARD_ROWS, extract_shard, feature_key, merge_shards, num_shards, shard_fault
from cedm_ray.search.packing import PROCESS_BYTES, Node, Resources
from cedm_ray.search.results import Notice, Progress, Show
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

_POLL_S = 2.0


class ExtractionWorker:
    """One copy of the extractor. It answers how far it is while it works. A shard is a function of the images and the
    extractor, so that asking for it again is safe."""

    def __init__(self, images: str, config: dict[str, Any], gpus: float) -> None:
        self.place, self.config, self.gpus = Path(images), FeaturesConfig.model_validate(config), gpus
        self.rows = 0
        self.opened = False

    def open(self) -> int:
        """Open everything. Not when the actor is made, where Ray would make its own of an error of ours."""
        if not self.opened:
            self.images = open_image_set(self.place)
            self.extractor = _open(self.config, self.images, choose_device(self.gpus))
            self.opened = True
        return 0

    def run(self, folder: str, index: int, batch_size: int, shard_rows: int) -> None:
        """Extract one shard. Opens what it needs where it was started anew."""
        self.open()
        before, rows = self.rows, 0
        sizes = {"batch_size": batch_size, "shard_rows": shard_rows}
        for rows in extract_shard(self.images, self.extractor, Path(folder), index, **sizes):
            self.rows = before + rows

    def rows_done(self) -> int:
        """Images whose features it has computed, all its shards together."""
        return self.rows


def prepare_features(
    study: Study,
    space: SearchSpace,
    images: ImageSet,
    cluster: Resources,
    show: Show,
    *,
    shard_rows: int = SHARD_ROWS,
) -> tuple[np.ndarray, str]:
    """The features [N, D] of the image set and their key; shards that are there and valid are not computed again.

    One worker for every GPU, or for every core where there is none, but not more than there are shards to do; one that
    is lost is started anew and its shard computed again. A file of weights that the space names must be there under
    that path on every node. shard_rows: images of a shard. Raises InputDataError and ConfigurationError as the
    extractor does, InputDataError naming images whose features are not finite, and TryAgainError where a worker is lost
    more than twice.
    """
    # Opened here as well: a missing weight file is then found before any worker starts.
    extractor = _open(space.features, images, "cpu")
    key = feature_key(images, extractor)
    folder = study.features(key)
    faults = {
        index: shard_fault(images, extractor, folder, index, shard_rows=shard_rows)
        for index in range(num_shards(len(images), shard_rows))
    }
    missing = [index for index, fault in faults.items() if fault is not None]
    for index in missing:
        if faults[index]:
            show(Notice(text=f"feature shard {index} is computed again: {faults[index]}"))
    if missing:
        _extract(study, space, extractor, folder, missing, len(images), shard_rows, cluster, show)
    return merge_shards(images, extractor, folder, shard_rows=shard_rows), key


def _open(config: FeaturesConfig, images: ImageSet, device: str) -> Extractor:
    return open_extractor(
        config.extractor,
        images,
        pixel_components=config.pixel_components,
        weights=config.weights,
        device=device,
    )


def worker_memory(weight_bytes: int, nodes: Sequence[Node]) -> tuple[int, int]:
    """(Bytes of host memory that a worker asks for, for how many of them the machines have room, at least 1).

    A machine of many cores must not hold as many copies of a network of gigabytes. Weights count twice, since they are
    read before they are put in place. A network that no machine has room for twice still gets a worker, with all of the
    largest machine's memory.
    """
    largest = max(node.memory_bytes for node in nodes)
    wanted = int(min(PROCESS_BYTES + 2 * weight_bytes, largest))
    # A machine whose memory Ray does not know has room for all.
    places = sum(min(node.memory_bytes / wanted, node.cpus) // 1 for node in nodes)
    return wanted, max(1, int(places))


def _extract(
    study: Study,
    space: SearchSpace,
    extractor: Extractor,
    folder: Path,
    missing: list[int],
    num_images: int,
    shard_rows: int,
    cluster: Resources,
    show: Show,
) -> None:
    gpus = 1.0 if cluster.gpus >= 1 else 0.0
    memory, places = worker_memory(extractor.weight_bytes, cluster_nodes().nodes)
    count = min(len(missing), int(cluster.gpus if gpus else cluster.cpus) or 1, places)
    config = located(space).features
    arguments = (str(study.images.absolute()), config.model_dump(mode="json"), gpus)
    held = {"num_cpus": 1, "num_gpus": gpus, "memory": memory}
    worker_class = ray.remote(max_concurrency=2, **held, **REPEATABLE)(ExtractionWorker)
    workers: list[Any] = [worker_class.remote(*arguments) for _ in range(count)]
    waiting = list(missing)
    shards: dict[Any, Any] = {}
    # Not asked again, or Ray would report each that still waits for a place at the end.
    questions = {worker.open.options(max_task_retries=0).remote(): worker for worker in workers}
    rows: dict[Any, int] = {}

    def hand_shard_to(worker: Any) -> None:
        if waiting:
            call = worker.run.remote(str(folder.absolute()), waiting.pop(0), config.batch_size, shard_rows)
            shards[call] = worker

    # The last shard is shorter than the others.
    total = sum(min(shard_rows, num_images - index * shard_rows) for index in missing)
    try:
        while shards or waiting:
            # A worker gets its first shard once it has answered: one that finds no place holds up nothing.
            calls = [*shards, *questions]
            answered, _ = ray.wait(calls, num_returns=len(calls), timeout=_POLL_S)
            for call in answered:
                if call in shards:
                    get(call)
                    hand_shard_to(shards.pop(call))
                    continue
                worker = questions.pop(call)
                if worker not in rows:
                    rows[worker] = get(call)
                    hand_shard_to(worker)
                    continue
                # Of one that was lost the shard will tell; how far it is, is not worth more than a look.
                with contextlib.suppress(TryAgainError):
                    rows[worker] = get(call)
            asked = set(questions.values())
            silent = [worker for worker in rows if worker not in asked]
            questions.update({worker.rows_done.options(max_task_retries=0).remote(): worker for worker in silent})
            show(Progress(task="features", done=sum(rows.values()), total=total, unit="images"))
        show(Progress(task="features", done=total, total=total, unit="images", ended=True))
    finally:
        for worker in workers:
            ray.kill(worker)
