"""Does `images inspect` find the bad files and the copies that were planted among real images, and nothing else?

Takes images of a source (CIFAR-10 as a zip of PNG files, say; without one, generated pictures), writes them as PNG
files and plants among them: bad files of eight kinds, equal copies (the same file under another name, the same pixels
in another format), and near copies: JPEG of quality 75 and of 40, a shift by one pixel to each of the eight directions,
brighter and flatter, twice as large. Each image has at most one copy, so that every error can be counted:

- recall: planted files that are named, for every kind;
- alarms: groups of copies in which an original stands without a planted copy of its own. Among real images these may be
  true: CIFAR-10 has copies of its own. `--sheet` draws them for the eye; generated pictures have none.

    python benchmarks/inspect_images.py --source cifar10-train.zip --images 5000    # about a minute
    python benchmarks/inspect_images.py                                             # generated, 2,000

The last line is JSON. `ratio` is the smallest recall over all kinds.
"""

import argparse
import io
import json
import os
import platform
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from cedm_ray.data.decoding import SourceImage, decode_image
from cedm_ray.data.entries import Entry
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.inspection import Inspection, inspect_images
from cedm_ray.data.sources import open_source
from cedm_ray.report.contact_sheet import contact_sheet

SIDE = 32


def real_images(path: str, count: int) -> list[np.ndarray]:
    """The first images of a source at 34x34, so that a shift by a pixel does not invent its border; uint8 [34, 34, 3].

    What is larger is made smaller; a smaller one, as those of CIFAR-10 are, gets a border by repeating its own.
    """
    source, config = open_source(path), ImagesConfig(crop="center")
    images = []
    for entry in source:
        image = decode_image(entry.name, entry.content, config) if isinstance(entry, Entry) else entry
        if isinstance(image, SourceImage):
            picture = Image.fromarray(image.pixels.transpose(1, 2, 0))
            if picture.width >= SIDE + 2:
                images.append(np.asarray(picture.resize((SIDE + 2, SIDE + 2), Image.Resampling.LANCZOS)))
            else:
                small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                images.append(np.pad(np.asarray(small), ((1, 1), (1, 1), (0, 0)), "edge"))
        if len(images) == count:
            break
    return images


def generated_images(count: int) -> list[np.ndarray]:
    """Random pictures whose colors change more slowly than their light; uint8 [34, 34, 3]."""
    rng = np.random.default_rng(0)
    shape = (count, SIDE + 2, SIDE + 2)
    light = gaussian_filter(rng.normal(size=(*shape, 1)), (0, 1.5, 1.5, 0))
    color = gaussian_filter(rng.normal(size=(*shape, 3)), (0, 6, 6, 0))
    mixed = 128 + 40 * light / light.std() + 15 * color / color.std()
    return list(np.clip(mixed, 0, 255).astype(np.uint8))


def encode(pixels: np.ndarray, image_format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(data, image_format, **options)
    return data.getvalue()


def center(whole: np.ndarray, down: int = 0, across: int = 0) -> np.ndarray:
    return whole[1 + down : 1 + down + SIDE, 1 + across : 1 + across + SIDE]


def scaled(whole: np.ndarray, gain: float, offset: float) -> bytes:
    return encode(np.clip(center(whole) * gain + offset, 0, 255).astype(np.uint8))


def twice(whole: np.ndarray) -> bytes:
    return encode(np.asarray(Image.fromarray(center(whole)).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)))


EQUAL: dict[str, Callable[[np.ndarray], tuple[str, bytes]]] = {
    "same file": lambda whole: ("png", encode(center(whole))),
    "same pixels as BMP": lambda whole: ("bmp", encode(center(whole), "BMP")),
    "same pixels as WebP": lambda whole: ("webp", encode(center(whole), "WEBP", lossless=True)),
}
NEAR: dict[str, Callable[[np.ndarray], tuple[str, bytes]]] = {
    "JPEG 75": lambda whole: ("jpg", encode(center(whole), "JPEG", quality=75)),
    "JPEG 40": lambda whole: ("jpg", encode(center(whole), "JPEG", quality=40)),
    "shift across": lambda whole: ("png", encode(center(whole, 0, random.choice([-1, 1])))),
    "shift down": lambda whole: ("png", encode(center(whole, random.choice([-1, 1]), 0))),
    "shift aslant": lambda whole: ("png", encode(center(whole, random.choice([-1, 1]), random.choice([-1, 1])))),
    "brighter by a fifth": lambda whole: ("png", scaled(whole, 1.2, 0)),
    "flatter and brighter": lambda whole: ("png", scaled(whole, 0.8, 30)),
    "twice as large": lambda whole: ("png", twice(whole)),
}
BAD: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda png: b"",
    "truncated PNG": lambda png: png[: len(png) // 2],
    "wrong checksum": lambda png: png[:-30] + bytes([png[-30] ^ 1]) + png[-29:],
    "HTML": lambda png: b"<!DOCTYPE html><title>404 Not Found</title>",
    "text": lambda png: b"the image was here",
    "GIF": lambda png: encode(np.zeros((4, 4, 3), np.uint8), "GIF"),
    "truncated JPEG": lambda png: encode(np.asarray(Image.open(io.BytesIO(png))), "JPEG")[:-30],
    "animation": lambda png: encode(
        np.zeros((4, 4, 3), np.uint8), "PNG", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]
    ),
}


def plant(images: list[np.ndarray], folder: Path) -> dict[str, dict[str, str]]:
    """Write everything; for each kind the planted names, with the name of the original (or "" for a bad file)."""
    kinds = {**EQUAL, **NEAR}
    planted: dict[str, dict[str, str]] = {kind: {} for kind in (*kinds, *BAD)}
    for index, whole in enumerate(images):
        name = f"{index:06d}.png"
        data = encode(center(whole))
        (folder / name).write_bytes(data)
        # A third of the images have a copy, one in fifty a bad file beside it.
        if index % 3 == 0:
            kind = list(kinds)[index // 3 % len(kinds)]
            extension, content = kinds[kind](whole)
            copy = f"{index:06d} copy.{extension}"
            (folder / copy).write_bytes(content)
            planted[kind][copy] = name
        if index % 50 == 0:
            kind = list(BAD)[index // 50 % len(BAD)]
            (folder / f"{index:06d} bad.png").write_bytes(BAD[kind](data))
            planted[kind][f"{index:06d} bad.png"] = ""
    return planted


def inspect(folder: Path) -> tuple[Inspection, float, float]:
    """What was found, and the CPU seconds for the images and for the copies among them."""
    steps = inspect_images(ImagesConfig(source=str(folder)))
    start = last = time.process_time()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, last - start, time.process_time() - last
        last = time.process_time()


def score(found: Inspection, planted: dict[str, dict[str, str]]) -> tuple[dict[str, float], list[tuple[str, ...]], int]:
    """Recall of each kind; the groups that hold two originals; and bad files that nobody planted."""
    groups_of = {
        kind: [set(group) for group in groups] for kind, groups in (("equal", found.exact), ("near", found.near))
    }
    where = {
        kind: {name: number for number, group in enumerate(groups) for name in group}
        for kind, groups in groups_of.items()
    }
    refused = {refusal.name for refusal in found.refused}
    # An equal copy of an image that has others: its group among the near ones has only one name of all the equal ones.
    recall = {}
    for kind, pairs in planted.items():
        if kind in BAD:
            hits = [name in refused for name in pairs]
        else:
            places = where["equal" if kind in EQUAL else "near"]
            hits = [copy in places and places[copy] == places.get(original) for copy, original in pairs.items()]
        if hits:
            recall[kind] = float(np.mean(hits))
    alarms = [group for group in (*found.exact, *found.near) if sum("copy" not in name for name in group) > 1]
    return recall, alarms, len(refused - {name for kind in BAD for name in planted[kind]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", help="images to plant among; default: generated ones")
    parser.add_argument("--images", type=int, default=2000, help="how many of them (default 2000)")
    parser.add_argument("--sheet", type=Path, help="write the contact sheet, a PNG file")
    parser.add_argument("--alarms", type=Path, help="write the names of the groups with two originals, a JSON file")
    options = parser.parse_args()
    random.seed(0)
    images = generated_images(options.images) if options.source is None else real_images(options.source, options.images)
    with tempfile.TemporaryDirectory(prefix="cedm-ray-benchmark-") as path:
        planted = plant(images, Path(path))
        num_files = sum(1 for _ in Path(path).iterdir())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found, images_s, copies_s = inspect(Path(path))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    recall, alarms, false_bad = score(found, planted)
    print(f"{num_files:,} files, {len(images):,} of them originals: {options.source or 'generated'}")
    for kind, value in recall.items():
        print(f"  {kind:<24}{len(planted[kind]):6,} planted   recall {value:7.2%}")
    print(f"  good files refused: {false_bad}")
    extra = sum(sum("copy" not in name for name in group) - 1 for group in alarms)
    print(f"  originals linked with other originals: {len(alarms)} groups, {extra} more than one of each")
    speed = f"{num_files / images_s:,.0f} images/s of CPU time, {copies_s:.1f} s to find the copies"
    print(f"  {speed}; {peak / 1024:.0f} MiB more")
    if options.sheet is not None:
        contact_sheet(found).save(options.sheet)
    if options.alarms is not None:
        options.alarms.write_text(json.dumps(alarms, indent=1))
    result = {
        "benchmark": "inspect_images",
        "ratio": min(recall.values()),
        "source": options.source and Path(options.source).name,
        "originals": len(images),
        "files": num_files,
        "recall": recall,
        "good_files_refused": false_bad,
        "alarm_groups": len(alarms),
        "alarm_originals": extra,
        "images_cpu_s": images_s,
        "copies_cpu_s": copies_s,
        "peak_growth_mib": peak / 1024,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
        },
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
