"""How much faster is a distance from images in memory than one by way of PNG files, and what memory does it take?

Every side measures the same generated 32-pixel images (smooth noise, which compresses about as natural images do) with
the same network against the same reference. Ours is what a search does at a rung: batches to the network, features to
sums that add. The other side is a plain implementation of our own of what folder-based evaluations
such as pytorch-fid do: write every image as PNG, read the folder through a DataLoader, keep all features, then NumPy's
mean and covariance and scipy's matrix square root. It runs with 50 images a batch and as many reading processes as the
machine has cores, up to 8, which are pytorch-fid's defaults, and with 256 images a batch; the first is what the ratio
is taken against.

    python benchmarks/evaluation.py --network ../shared/weights/cifar10_resnet56.pt

The sides take turns within chunks of 2,000 images, so that a machine that slows down slows all, and each may use all
cores as it can: PNG files are written by one of them, as such evaluations do. `ratio` is of wall time, `ratio_cpu` of
CPU time, reading processes included. Memory is that of processes of their own, for 2,000 and 10,000 images made batch
by batch: the highest resident size. No file is written by ours. Aim: 1.5 times. The last line is JSON.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image

from cedm_ray.features.network import Extractor
from cedm_ray.features.torchscript import open_torchscript
from cedm_ray.metrics.statistics import FeatureStatistics
from cedm_ray.search.evaluate import distance_to, image_statistics

SIDE = 32
FILE_BATCHES = (50, 256)
READERS = min(os.cpu_count() or 1, 8)


def generated(count: int, batch: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Smooth noise, uint8 [b, 3, 32, 32] a batch: it compresses about as natural images do."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, batch):
        size = min(batch, count - start)
        coarse = torch.from_numpy(rng.normal(size=(size, 3, 8, 8)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic")
        fine = torch.from_numpy(rng.normal(size=(size, 3, SIDE, SIDE)).astype(np.float32))
        yield ((smooth + 0.15 * fine) * 50 + 128).clip(0, 255).to(torch.uint8).numpy()


class Files(torch.utils.data.Dataset):
    """The images of a folder, uint8 [3, 32, 32] each."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Ours:
    """As a rung is measured."""

    def __init__(self, network: Extractor, reference: FeatureStatistics) -> None:
        self.network, self.reference = network, reference
        self.total = FeatureStatistics.empty(reference.dim)

    def measure(self, batches: list[np.ndarray]) -> None:
        self.total = self.total + image_statistics(batches, self.network)

    def finish(self) -> float:
        return distance_to(self.reference, self.total)[0]


class ByFiles:
    """Batches to PNG files, files to features, features kept."""

    def __init__(self, network: Extractor, reference: FeatureStatistics, folder: Path, batch: int) -> None:
        self.network, self.folder, self.batch = network, folder / f"by-{batch}", batch
        self.folder.mkdir()
        self.mean, self.covariance = reference.mean.numpy(), reference.covariance.numpy()
        self.features: list[np.ndarray] = []
        self.written = 0

    def measure(self, batches: list[np.ndarray]) -> None:
        folder = self.folder / f"{self.written:08d}"
        folder.mkdir()
        for batch in batches:
            for image in batch:
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{self.written:08d}.png")
                self.written += 1
        with torch.inference_mode():
            for images in torch.utils.data.DataLoader(Files(folder), batch_size=self.batch, num_workers=READERS):
                self.features.append(self.network(images).cpu().numpy())

    def finish(self) -> float:
        features = np.concatenate(self.features).astype(np.float64)
        mean, covariance = features.mean(axis=0), np.cov(features, rowvar=False)
        root = scipy.linalg.sqrtm(covariance @ self.covariance)
        trace = np.trace(covariance) + np.trace(self.covariance) - 2 * np.trace(root).real
        return float((mean - self.mean) @ (mean - self.mean) + trace)


def open_network(path: Path) -> Extractor:
    return open_torchscript(path, path.stem, SIDE, torch.device("cpu"))


def cpu_s() -> float:
    """CPU seconds of this process and of those that it waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_memory(network_path: Path, count: int, batch: int) -> None:
    """In a process of its own: print the growth of the highest resident size in KiB."""
    network = open_network(network_path)
    few = image_statistics(generated(200, 50, seed=1), network)
    ours = Ours(network, few)
    before = peak_kib()
    for images in generated(count, batch):
        ours.measure([images])
    distance = ours.finish()
    print(json.dumps({"before_kib": before, "peak_kib": peak_kib(), "distance": distance}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", type=Path, default=Path("../shared/weights/cifar10_resnet56.pt"))
    parser.add_argument("--num", type=int, default=10_000, help="images (default 10,000)")
    parser.add_argument("--batch", type=int, default=256, help="images a batch (default 256)")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        measure_memory(options.network, options.memory_of, options.batch)
        return
    network = open_network(options.network)
    reference = image_statistics(generated(2000, options.batch, seed=1), network)
    images = list(generated(options.num, options.batch))
    chunk = max(1, 2000 // options.batch)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"in memory": Ours(network, reference)}
        for batch in FILE_BATCHES:
            sides[f"by files, {batch} a batch"] = ByFiles(network, reference, Path(folder), batch)
        cpu, wall, value = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0), {}
        steps = [images[start : start + chunk] for start in range(0, len(images), chunk)]
        for number, step in enumerate([*steps, None]):
            # Whoever goes first changes from turn to turn.
            names = list(sides)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                cpu_start, wall_start = cpu_s(), time.perf_counter()
                if step is None:
                    value[name] = sides[name].finish()
                else:
                    sides[name].measure(step)
                cpu[name] += cpu_s() - cpu_start
                wall[name] += time.perf_counter() - wall_start
    for name in sides:
        print(f"{name:<26} {cpu[name]:8.2f} s CPU {wall[name]:8.2f} s wall   d² = {value[name]:.10g}")
    memory = {}
    for count in (options.num // 5, options.num):
        command = [sys.executable, __file__, "--network", str(options.network), "--memory-of", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[count] = json.loads(done.stdout)
        grown = (memory[count]["peak_kib"] - memory[count]["before_kib"]) / 1024
        print(f"{count:>7,} images: {memory[count]['peak_kib'] / 1024:,.1f} MiB at most, {grown:.1f} above the start")
    few, many = (memory[count]["peak_kib"] for count in sorted(memory))
    ours, *others = sides
    result = {
        "benchmark": "evaluation",
        "num": options.num,
        "ratio": round(wall[others[0]] / wall[ours], 2),
        "ratio_larger_batch": round(wall[others[1]] / wall[ours], 2),
        "ratio_cpu": round(cpu[others[0]] / cpu[ours], 2),
        "cpu_s": cpu,
        "wall_s": wall,
        "relative_difference": abs(value[ours] / value[others[0]] - 1),
        "files_written": {name: getattr(side, "written", 0) for name, side in sides.items()},
        "peak_kib": {str(count): found["peak_kib"] for count, found in memory.items()},
        "peak_growth": round(many / few - 1, 4),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "torch": torch.__version__,
        },
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
