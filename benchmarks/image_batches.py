"""How fast random batches come out of a memory-mapped set: `python benchmarks/image_batches.py --count 200000`.

A set of `--count` 32-pixel images lies on the disk as an import leaves it (random bytes; here its content does not
matter), and batches of 512 random rows are read of it in the order of training. The other side is the training step of
the `cifar10` preset on the same processor at batch `--batch`, with its own loading in it. Both sides take turns in one
process, the first round is thrown away, and CPU time is read with one thread (OMP_NUM_THREADS=1). `ratio` is images/s
of reading over images/s of training: at least 5 is wanted, so that images are never what training waits for.

With `--cold` the kernel is asked to forget the file before every batch (posix_fadvise), which shows what a set larger
than the memory costs: then the wall clock is read, and the disk is measured.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.train import TrainConfig, TrainState, train
from cedm_ray.diffusion.unet import UNetConfig

SIZE, READ, NUM_CLASSES = 32, 512, 100


def write_pixels(path, count):
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, SIZE, SIZE))
    rng = np.random.default_rng(0)
    for start in range(0, count, 4096):
        pixels[start : start + 4096] = rng.integers(0, 256, pixels[start : start + 4096].shape, dtype=np.uint8)
    pixels.flush()


def forget(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def open_pixels(path):
    return np.load(path, mmap_mode="r", allow_pickle=False)


def read_batches(path, order, start, count, cold):
    """Seconds for some batches."""
    clock = time.monotonic if cold else time.process_time
    pixels = open_pixels(path)
    seconds = 0.0
    for number in range(count):
        if cold:
            del pixels
            forget(path)
            pixels = open_pixels(path)
        rows = order.rows(start + number * READ, READ)
        began = clock()
        batch = torch.from_numpy(np.asarray(pixels[rows]))
        seconds += clock() - began
        assert batch.shape == (READ, 3, SIZE, SIZE)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="images in the set")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--batches", type=int, default=20, help="read in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--work", help="folder for the set; default: a temporary one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.monotonic if given.cold else time.process_time
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        path = Path(name) / "pixels.npy"
        write_pixels(path, given.count)
        order = TrainingOrder(num_images=given.count, seed=0)
        config, augment = TrainConfig(batch_size=given.batch), AugmentConfig()
        state = TrainState.create(UNetConfig(), EDMConfig(), config, augment, SIZE, NUM_CLASSES, seed=0, device="cpu")
        reading, training = [], []
        for number in range(given.rounds + 1):
            taken = read_batches(path, order, number * given.batches * READ, given.batches, given.cold)
            began = clock()
            steps = train(
                state,
                open_pixels(path),
                np.arange(given.count) % NUM_CLASSES,
                config=config,
                augment=augment,
                order=order,
                seed=0,
                until_images=(number + 1) * given.batch,
                total_kimg=1,
                progress_every=10**9,
            )
            for _ in steps:
                pass
            trained = clock() - began
            if number:
                reading.append(given.batches * READ / taken)
                training.append(given.batch / trained)
                print(f"round {number}: {reading[-1]:,.0f} images/s read, {training[-1]:.2f} images/s trained")
    read_rate, train_rate = statistics.median(reading), statistics.median(training)
    report = {
        "benchmark": "image_batches",
        "ratio": round(read_rate / train_rate, 1),
        "read_images_per_s": round(read_rate, 1),
        "trained_images_per_s": round(train_rate, 3),
        "count": given.count,
        "cold": given.cold,
        "batch_size": given.batch,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
