"""The predicted peak memory of training against the measured one, on a CPU: `python benchmarks/edm_memory.py`.

A fresh process trains the network of the `cifar10` preset for two steps at batch 2 in float32 (and a 32-channel one at
batch 16). Two things are measured: the highest total that torch's allocator reports (its profiler), which is what the
prediction is of, and the growth of the process (the kernel's high-water mark), in which the kernels' own buffers and
what the C library keeps for later are contained too. `ratio` is predicted over the allocator's, the one farther from 1
of the two networks: within 0.9 and 1.1.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.profiler import profile

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.memory import predict_memory
from cedm_ray.diffusion.train import TrainConfig, TrainState, train
from cedm_ray.diffusion.unet import UNetConfig

NETS = {"cifar10": (UNetConfig(), 2), "32": (UNetConfig(model_channels=32), 16)}
NUM_CLASSES, SIZE, NUM_IMAGES = 100, 32, 64


def train_two_steps(name):
    network, batch_size = NETS[name]
    config, augment = TrainConfig(batch_size=batch_size), AugmentConfig()
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 3, SIZE, SIZE), dtype=np.uint8)
    state = TrainState.create(network, EDMConfig(), config, augment, SIZE, NUM_CLASSES, seed=0, device="cpu")
    steps = train(
        state,
        pixels,
        np.arange(NUM_IMAGES) % NUM_CLASSES,
        config=config,
        augment=augment,
        order=TrainingOrder(num_images=NUM_IMAGES, seed=0),
        seed=0,
        until_images=2 * batch_size,
        total_kimg=1,
        progress_every=10**9,
    )
    list(steps)


def high_water_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(name, how, connection):
    """In a process of its own: bytes by the allocator, or by the process's growth."""
    torch.set_num_threads(1)
    if how == "process":
        before = high_water_bytes()
        train_two_steps(name)
        connection.send(high_water_bytes() - before)
        return
    with profile(profile_memory=True) as profiled:
        train_two_steps(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    connection.send(max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"))


def measured(name, how):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(name, how, there))
    process.start()
    found = here.recv()
    process.join()
    return found


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("peak memory of a training step in float32: predicted, by the allocator, growth of the process")
    results = {}
    for name, (network, batch_size) in NETS.items():
        predicted = predict_memory(
            network,
            TrainConfig(batch_size=batch_size),
            image_size=SIZE,
            augment=AugmentConfig(),
            num_classes=NUM_CLASSES,
        )
        allocator, process = measured(name, "allocator"), measured(name, "process")
        results[name] = {
            "batch_size": batch_size,
            "predicted_bytes": predicted,
            "allocator_bytes": allocator,
            "process_bytes": process,
            "ratio": round(predicted / allocator, 4),
            "process_ratio": round(predicted / process, 4),
        }
        print(f"{name}: {predicted / 2**20:.1f}, {allocator / 2**20:.1f}, {process / 2**20:.1f} MiB")
    report = {
        "benchmark": "edm_memory",
        "ratio": max((result["ratio"] for result in results.values()), key=lambda ratio: abs(ratio - 1)),
        "results": results,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
