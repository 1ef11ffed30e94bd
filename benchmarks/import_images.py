"""How fast images become a set, on how much memory: `python benchmarks/import_images.py --source cifar10-train.zip`.

Two comparisons, each by the wall clock, because they are about cores, with both sides taking turns in fresh processes
that may use `--cores` cores.

Without `--scaling`: the first `--count` images of `--source` (any source of files; without it, generated 32-pixel PNGs)
are written out as a folder of files. The plain side is what one writes without this package: one process that opens
each file with Pillow, converts it to RGB and puts it into a memory-mapped array. Ours is `import_images` of that
folder, which also checks every checksum, hashes every file, the pixels and its shards, writes an index and flushes all
of it to the disk. `ratio` is the plain side's median seconds over ours: at least 1.6 on 2 cores, with `peak_mib` below
300. The first round warms the page cache and is thrown away. `cpu_seconds` says what
a busy machine hides: with nothing else to do, two cores take half of ours.

With `--scaling`: `--count` generated 64-pixel JPEGs (quality 90, 1,000 to a folder) against the first 50,000 of them.
`ratio` is images/s of all over images/s of the 50,000: at least 0.9, with memory flat (`peak_mib` of both; only the
names of the files grow with their number). A million files take some 4 GB of disk, their set 12 GB.

Memory is the largest sum of the proportional set sizes of the process and its workers, looked at 20 times a second.
Looking takes a tenth of a core, which the plain side has to spare and ours has not: without `--scaling` it is done in
the round that is thrown away, and no side is looked at while it is timed.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

PLAIN = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
folder, out = Path(sys.argv[1]), sys.argv[2]
files = sorted(folder.rglob("*.*"))
pixels = None
for row, path in enumerate(files):
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGB"))
    if pixels is None:
        pixels = np.lib.format.open_memmap(out, "w+", np.uint8, (len(files), 3, *picture.shape[:2]))
    pixels[row] = picture.transpose(2, 0, 1)
pixels.flush()
"""
OURS = """
import sys
from pathlib import Path
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import import_images
for _ in import_images(ImagesConfig(source=sys.argv[1]), Path(sys.argv[2])):
    pass
"""
BASE = 50_000
PER_FOLDER = 1_000


def unpack(source, count, folder):
    """The first images of a source of files, as files."""
    from cedm_ray.data.sources import open_source

    for row, entry in enumerate(open_source(source).at(range(count))):
        path = folder / f"{row // PER_FOLDER:05d}" / f"{row:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entry.content)


def generate(count, folder, size, suffix, cores):
    """Pictures with some structure and some noise, each another."""
    starts = range(0, count, PER_FOLDER)
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(generate_some, starts, repeat(count), repeat(folder), repeat(size), repeat(suffix)))


def generate_some(start, count, folder, size, suffix):
    rng = np.random.default_rng(start)
    noise = rng.integers(0, 64, (64, size, size, 3), dtype=np.uint8)
    below = folder / f"{start // PER_FOLDER:05d}"
    below.mkdir(parents=True)
    for row in range(start, min(start + PER_FOLDER, count)):
        coarse = rng.integers(0, 192, (4, 4, 3), dtype=np.uint8)
        picture = noise[row % 64] + coarse.repeat(size // 4, 0).repeat(size // 4, 1)
        Image.fromarray(picture).save(below / f"{row:08d}.{suffix}", quality=90)


def pss_bytes(pid):
    """Proportional set size of a process and of all below it."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return own + sum(pss_bytes(child) for child in children)


def timed(program, folder, out, cores, watched=True):
    """(seconds, CPU seconds, peak bytes) of one side in a process of its own; its output is removed. watched: whether
    its memory is looked at; the peak is 0 otherwise."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), str(out)],
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    peak = 0
    while True:
        # The usage of a process that has ended holds that of its workers.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if watched:
            peak = max(peak, pss_bytes(process.pid))
        time.sleep(0.05 if watched else 0.01)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a side ended with {process.returncode}")
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink()
    return seconds, usage.ru_utime + usage.ru_stime, peak


def compare(folder, work, count, rounds, cores):
    sides = {"plain": (PLAIN, work / "plain.npy"), "ours": (OURS, work / "set")}
    seconds = {name: [] for name in sides}
    cpu_seconds = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0)
    for number in range(rounds + 1):
        for name, (program, out) in sides.items():
            taken, used, peak = timed(program, folder, out, cores, watched=number == 0)
            peaks[name] = max(peaks[name], peak)
            if number:
                seconds[name].append(taken)
                cpu_seconds[name].append(used)
                rate = f"{count / taken:,.0f} images/s"
                print(f"round {number}: {name} {taken:.2f} s, {used:.2f} CPU s, {rate}")
    plain, ours = (statistics.median(seconds[name]) for name in ("plain", "ours"))
    return {
        "ratio": round(plain / ours, 3),
        "paired_ratio": round(statistics.median(p / o for p, o in zip(*seconds.values(), strict=True)), 3),
        "images_per_s": round(count / ours, 1),
        "plain_images_per_s": round(count / plain, 1),
        "peak_mib": round(peaks["ours"] / 2**20, 1),
        "plain_peak_mib": round(peaks["plain"] / 2**20, 1),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def scale(folder, work, count, rounds, cores, base):
    part = work / "part"
    part.mkdir()
    for number in range(base // PER_FOLDER):
        shutil.copytree(folder / f"{number:05d}", part / f"{number:05d}", copy_function=os.link)
    sides = {"part": (part, base), "all": (folder, count)}
    rates = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0)
    for number in range(rounds):
        for name, (source, size) in sides.items():
            taken, _, peak = timed(OURS, source, work / "set", cores)
            rates[name].append(size / taken)
            peaks[name] = max(peaks[name], peak)
            print(f"round {number + 1}: {size:,} images, {size / taken:,.0f} images/s, {peak / 2**20:.0f} MiB")
    part_rate, all_rate = (statistics.median(rates[name]) for name in ("part", "all"))
    return {
        "ratio": round(all_rate / part_rate, 3),
        "images_per_s": round(all_rate, 1),
        "part_images_per_s": round(part_rate, 1),
        "part_count": base,
        "peak_mib": round(peaks["all"] / 2**20, 1),
        "part_peak_mib": round(peaks["part"] / 2**20, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="whose files are imported, such as CIFAR-10 as a zip of PNGs")
    parser.add_argument("--count", type=int, default=BASE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--part", type=int, default=BASE, help="with --scaling: how many the count is compared with")
    parser.add_argument("--work", help="folder for all of it; default: a temporary one")
    given = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[: given.cores])
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        work = Path(name)
        folder = work / "images"
        folder.mkdir()
        print(f"writing {given.count:,} files ...", flush=True)
        if given.scaling:
            generate(given.count, folder, 64, "jpg", len(cores))
            found = scale(folder, work, given.count, given.rounds, cores, given.part)
        else:
            if given.source:
                unpack(given.source, given.count, folder)
            else:
                generate(given.count, folder, 32, "png", len(cores))
            found = compare(folder, work, given.count, given.rounds, cores)
    report = {
        "benchmark": "import_images",
        **found,
        "count": given.count,
        "source": "generated JPEG" if given.scaling else (Path(given.source).name if given.source else "generated PNG"),
        "machine": f"{platform.machine()}, {len(cores)} of {os.cpu_count()} CPUs",
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
