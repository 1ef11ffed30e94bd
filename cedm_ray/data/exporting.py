"""An image set as files that others read: a folder or a zip of PNG files, both as EDM lays them out, or Parquet.

A folder and a zip hold `00000/img00000000.png` and so on, a thousand to a folder of names, and a `dataset.json` with
the labels where the set has them (T. Karras et al., "Elucidating the design space of diffusion-based generative
models", 2022: the layout of their data sets). Parquet has Hugging Face's columns `image`, a struct of `bytes` (PNG) and
`path` (the image's name in its source), and `label`. One image at a time is in memory, one group of rows for Parquet.

Shapes: N images, S image side.
"""

import io
import json
import os
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cedm_ray.data.edm_labels import DATASET_JSON
from cedm_ray.data.image_set import ImageSet
from cedm_ray.durable import commit_file, storage_error, temporary_path
from cedm_ray.errors import StorageError

_FOLDER_IMAGES = 1_000
_ROWS_PER_GROUP = 1_000
_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every member of a zip, so that equal images give equal bytes; the earliest that a zip can say."""
_HUGGING_FACE = {
    "image": {"_type": "Image"},
    "label": {"dtype": "int32", "_type": "Value"},
}


def export_images(images: ImageSet, out: Path) -> Generator[int, None, Path]:
    """Write a set to `out` and return that (as StopIteration's value): a Parquet file or a zip where the name ends so,
    else a folder.

    Yields the number of images written, after each. Parquet and zip appear under their name when they are whole; a
    folder's dataset.json is written last. Raises StorageError where something is there already or cannot be written.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        mend = "name a path that is not there yet"
        raise StorageError(f"{out.absolute()} is there already and is not written over", mend=mend)
    kinds = {".parquet": _write_parquet, ".zip": _write_zip}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write = kinds.get(out.suffix.lower())
        if write is None:
            yield from _write_folder(images, out)
            return out
        temporary = temporary_path(out)
        try:
            yield from write(images, temporary)
            commit_file(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, out, images.pixels.nbytes) from error
    return out


def edm_name(row: int) -> str:
    """The name of an image in EDM's layout."""
    return f"{row // _FOLDER_IMAGES:05d}/img{row:08d}.png"


def _pngs(images: ImageSet) -> Iterator[bytes]:
    for pixels in images.pixels:
        data = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(data, "PNG", compress_level=1)
        yield data.getvalue()


def _dataset_json(images: ImageSet) -> bytes:
    labels = None if images.labels is None else images.labels.tolist()
    pairs = None if labels is None else [[edm_name(row), label] for row, label in enumerate(labels)]
    return json.dumps({"labels": pairs}).encode()


def _write_folder(images: ImageSet, out: Path) -> Generator[int, None, None]:
    for row, data in enumerate(_pngs(images)):
        path = out / edm_name(row)
        if row % _FOLDER_IMAGES == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        yield row + 1
    temporary = temporary_path(out / DATASET_JSON)
    temporary.write_bytes(_dataset_json(images))
    os.sync()
    commit_file(temporary, out / DATASET_JSON)


def _write_zip(images: ImageSet, out: Path) -> Generator[int, None, None]:
    with zipfile.ZipFile(out, "x", zipfile.ZIP_STORED) as archive:
        for row, data in enumerate(_pngs(images)):
            archive.writestr(zipfile.ZipInfo(edm_name(row), _TIME), data)
            yield row + 1
        archive.writestr(zipfile.ZipInfo(DATASET_JSON, _TIME), _dataset_json(images))


def _write_parquet(images: ImageSet, out: Path) -> Generator[int, None, None]:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [("image", image), *([] if images.labels is None else [("label", pa.int32())])]
    features = {name: _HUGGING_FACE[name] for name, _ in columns}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(columns, metadata=metadata)
    rows: list[dict] = []
    # PNG is compressed already.
    with pq.ParquetWriter(out, schema, compression="none", write_page_checksum=True) as table:
        for row, data in enumerate(_pngs(images)):
            line = {"image": {"bytes": data, "path": images.names[row]}}
            rows.append(line if images.labels is None else {**line, "label": int(images.labels[row])})
            if len(rows) == _ROWS_PER_GROUP:
                table.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
            yield row + 1
        table.write_table(pa.Table.from_pylist(rows, schema))
