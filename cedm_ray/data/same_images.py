"""Whether a source still holds the images that a set was made of, by their content.

A fingerprint (`sources.py`) costs no reading, and files that were copied, unpacked or fetched again have another one,
because their times are others. Before a set is said to be of other images, the files themselves are asked.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cedm_ray.data.decoding import Refusal
from cedm_ray.data.decoding_pool import DecodingPool
from cedm_ray.data.entries import Entry
from cedm_ray.data.image_set import INDEX, MANIFEST
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.sources import open_source
from cedm_ray.durable import read_record


def same_images(config: ImagesConfig, folder: Path) -> bool:
    """Whether an import of `config` would make the set in `folder` again: the same names, contents, labels and refusals
    in the same order, by the same settings.

    Every file is read, and those that were refused are decoded. Raises as `open_source` and as the source does.
    """
    # A set of an earlier version was made with the defaults of settings that came since.
    made = ImagesConfig().model_dump(mode="json") | read_record(folder / MANIFEST)["config"]
    if made | {"source": None} != config.model_dump(mode="json") | {"source": None}:
        return False
    with contextlib.ExitStack() as stack:
        # What was refused may have killed its decoder: nothing is decoded in this process.
        pools: list[DecodingPool] = []
        for line, entry in itertools.zip_longest(_lines(folder / INDEX), open_source(config)):
            if line is None or entry is None or entry.name != line["name"]:
                return False
            if line["reason"] is None:
                if isinstance(entry, Refusal) or entry.label != line.get("label") or _digest(entry) != line["sha256"]:
                    return False
                continue
            if isinstance(entry, Entry):
                if not pools:
                    pools.append(stack.enter_context(DecodingPool(config, 1)))
                ((entry, _),) = pools[0].decode([[entry]])
            if not isinstance(entry, Refusal) or entry.reason != line["reason"]:
                return False
    return True


def _digest(entry: Entry) -> str:
    return hashlib.sha256(entry.content if isinstance(entry.content, bytes) else entry.content.tobytes()).hexdigest()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        columns = [name for name in ("name", "sha256", "label", "reason") if name in file.schema_arrow.names]
        for batch in file.iter_batches(1_000, columns=columns):
            yield from batch.to_pylist()
