"""How long a checkpoint holds training up: `python benchmarks/edm_checkpoint.py`.

The state is that of the `cifar10` preset (55.7 million weights, their average and Adam's two moments: 892 MB). Written
in the foreground, training would wait for the copy, packing, hashing and the disk; written in the background it waits
for the copy alone, if the write before is done. Both are measured in turn. `ratio` is the foreground's seconds over the
background's. `share` is what the background's would be of the training between two checkpoints at the preset's interval
(one million images) and `--images-per-s`, by default 2,485, the speed that is wanted of an H200: at most 0.01.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.sample import SampleConfig
from cedm_ray.diffusion.train import TrainConfig, TrainState
from cedm_ray.diffusion.unet import UNetConfig
from cedm_ray.search.checkpoints import CheckpointWriter
from cedm_ray.search.model import Meaning, Snapshot, save_checkpoint

INTERVAL_IMAGES = 1_000_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="timed writes of each, after one that is thrown away")
    parser.add_argument("--images-per-s", type=float, default=2485)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: the folder of temporaries")
    arguments = parser.parse_args()
    network = UNetConfig()
    state = TrainState.create(network, EDMConfig(), TrainConfig(), AugmentConfig(), 32, 100, seed=0, device="cpu")
    meaning = Meaning(
        trial="c00100",
        num_clusters=100,
        class_ids=tuple(range(100)),
        counts=(500,) * 100,
        image_size=32,
        augment_dim=9,
        network=network,
        edm=EDMConfig(),
        sampling=SampleConfig(),
    )
    seconds = {"foreground": [], "background": [], "write": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        parent = Path(folder)
        with CheckpointWriter(parent, meaning, keep=2) as writer:
            for number in range(1 + arguments.rounds):
                state.images_seen += INTERVAL_IMAGES
                started = time.monotonic()
                save_checkpoint(parent, Snapshot.take(state), meaning, 2)
                seconds["foreground"].append(time.monotonic() - started)
                state.images_seen += INTERVAL_IMAGES
                started, before = time.monotonic(), writer.blocked_s
                writer.save(state)
                seconds["background"].append(writer.blocked_s - before)
                # Training would go on for minutes here; the write is waited for, so that the next round begins clean.
                writer.wait()
                seconds["write"].append(time.monotonic() - started)
                print(f"round {number}: " + ", ".join(f"{name} {values[-1]:.3f} s" for name, values in seconds.items()))
    timed = {name: values[1:] for name, values in seconds.items()}
    held_s = statistics.median(timed["background"])
    report = {
        "benchmark": "edm_checkpoint",
        "ratio": round(statistics.median(timed["foreground"]) / held_s, 2),
        "share": round(held_s / (INTERVAL_IMAGES / arguments.images_per_s), 6),
        **{f"{name}_s": [round(value, 3) for value in values] for name, values in timed.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
