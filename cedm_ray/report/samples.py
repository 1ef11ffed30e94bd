"""Generated images as files: a folder or a zip of PNG files named by their seeds, or one npz file.

n images, S image side.
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cedm_ray import durable
from cedm_ray.errors import ConfigurationError
from cedm_ray.report.figures import png, sample_grid
from cedm_ray.search.model import find_model
from cedm_ray.search.results import Progress, Show
from cedm_ray.search.study import Study


def sample_to_files(
    study: Study,
    trial: str | None,
    seeds: Sequence[int],
    *,
    cluster: int | None,
    steps: int | None,
    grid: Path | None,
    out: Path | None,
    show: Show,
) -> None:
    """Generate one image per seed with a trial's model (None: the best), and write a picture, the images, or both.

    cluster: original id to condition all of them on, None draws from q(c). steps: of the sampler, None = the model's.
    Raises ConfigurationError for a trial or a cluster that the study does not have, StorageError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = find_model(study, trial, device, show)
    ids = model.meaning.class_ids
    if cluster is not None and cluster not in ids:
        known = f"its {len(ids)} used clusters lie between {min(ids)} and {max(ids)}" if ids else "it is unconditional"
        raise ConfigurationError(f"{model.meaning.trial} was not trained on a cluster {cluster}: {known}")
    classes = None if cluster is None else [ids.index(cluster)] * len(seeds)
    config = model.meaning.sampling
    if steps is not None:
        config = config.model_copy(update={"num_steps": steps})
    kept: list[np.ndarray] = []

    def shown() -> Iterator[np.ndarray]:
        done = 0
        for batch in model.sample(seeds, classes=classes, config=config):
            done += len(batch)
            show(Progress(task="samples", done=done, total=len(seeds), unit="images"))
            if grid is not None:
                kept.append(batch)
            yield batch

    if out is not None:
        write_samples(shown(), seeds, out)
    else:
        for _ in shown():
            pass
    if grid is not None:
        columns = math.ceil(math.sqrt(len(seeds)))
        durable.write_bytes(grid, png(sample_grid(np.concatenate(kept), columns)))


def write_samples(batches: Iterable[np.ndarray], seeds: Sequence[int], path: Path) -> None:
    """Write images as they are generated.

    batches: uint8 [b, 3, S, S], together n images in the order of `seeds` [n]. path: `*.zip` (stored, not compressed,
    as PNG is already), `*.npz` (arrays `images` uint8 [n, S, S, 3] and `seeds` int64 [n], all held in memory), else a
    folder. Raises StorageError.
    """
    path = Path(path)
    if path.suffix == ".npz":
        images = np.concatenate([batch.transpose(0, 2, 3, 1) for batch in batches])
        buffer = io.BytesIO()
        np.savez(buffer, images=images, seeds=np.asarray(seeds, dtype=np.int64))
        durable.write_bytes(path, buffer.getvalue())
    elif path.suffix == ".zip":
        _write_zip(batches, seeds, path)
    else:
        for name, data in _files(batches, seeds):
            durable.write_bytes(path / name, data)


def _write_zip(batches: Iterable[np.ndarray], seeds: Sequence[int], path: Path) -> None:
    temporary, written = durable.temporary_path(path), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, data in _files(batches, seeds):
                written += len(data)
                archive.writestr(zipfile.ZipInfo(name), data)
        durable.commit_file(temporary, path)
    except OSError as error:
        raise durable.storage_error(error, path, written) from error
    finally:
        # What stands in the way of the file stands in the way of its removal too; the first error is the one to tell.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _files(batches: Iterable[np.ndarray], seeds: Sequence[int]) -> Iterable[tuple[str, bytes]]:
    position = 0
    for batch in batches:
        for image in batch:
            yield f"{seeds[position]:08d}.png", png(Image.fromarray(image.transpose(1, 2, 0)))
            position += 1
