"""What a condition is worth at an equal budget: a small C-EDM on real CIFAR-10 images, one training a condition.

    python benchmarks/conditioning.py --data DIR --detector FILE.pt --out results.jsonl

DIR holds CIFAR-10 as this project's data folder does: `unpack.py`, `labels.npz`, `features_mobilenet_v2_pca256.npy` and
`published_clusters.npz`. FILE.pt is a TorchScript network uint8 [B, 3, 32, 32] -> [B, D]; a Fréchet distance in its
features is no FID. Conditions: none, the class labels, the published TEMI assignments (DINO ViT-B/16, gamma 0.6) and
k-means on the features (scikit-learn's KMeans, full Lloyd iterations but two starts instead of the ten that published
results take, for time), both at C = 10, 100 and 500.

Every condition gets the same budget, seed, initial weights, order of images, noise, sampling seeds and sampler; the
library's own train, sample, FeatureStatistics and frechet_distance do the work. The default is a 16-channel network of
two levels for 50 thousand images, about two hours of one core for all eight. At this size the distances are
large and say which condition learns faster, not what a converged model reaches. On a GPU: `--channels 64 --kimg 1000
--samples 10000 --device cuda`, where steps have 256 images, because smaller ones are over before the next is launched.

Results are appended to --out, one JSON object a line (`kind`: setup, floor, loss or result). A condition that has its
result there is not run again, so a call that was ended is continued by the same command; other settings in the file
are refused. With --limit-s no condition is begun that would end later if it took as long as the longest one before.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.sample import SampleConfig, sample
from cedm_ray.diffusion.train import TrainConfig, TrainState, train
from cedm_ray.diffusion.unet import UNetConfig
from cedm_ray.metrics.frechet import frechet_distance, frechet_reference
from cedm_ray.metrics.statistics import FeatureStatistics

CONDITIONS = ("unconditional", "labels", "temi-100", "kmeans-100", "temi-10", "temi-500", "kmeans-10", "kmeans-500")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_images(data):
    """The training images, uint8 [50000, 3, 32, 32], and their labels."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(data / "unpack.py"), "arrays", folder], check=True)
        with np.load(Path(folder) / "train.npz") as arrays:
            return np.ascontiguousarray(arrays["x"].transpose(0, 3, 1, 2)), arrays["y"]


def read_condition(name, data, labels):
    """The class of every image [N], compacted, or None."""
    if name == "unconditional":
        return None
    kind, _, clusters = name.partition("-")
    if kind == "labels":
        raw = labels
    elif kind == "kmeans":
        features = np.load(data / "features_mobilenet_v2_pca256.npy").astype(np.float32)
        raw = KMeans(int(clusters), n_init=2, random_state=0).fit(features).labels_
    else:
        with np.load(data / "published_clusters.npz") as published:
            raw = published[f"TEMI-dino_vitb16/clusters_{clusters}/beta-0.6"]
    return np.unique(raw, return_inverse=True)[1].astype(np.int64)


def statistics_of(batches, detector, device):
    total = None
    with torch.inference_mode():
        for batch in batches:
            part = FeatureStatistics.of(detector(torch.from_numpy(batch).to(device)))
            total = part if total is None else total + part
    return FeatureStatistics.from_arrays(total.to_arrays())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 as described above")
    parser.add_argument("--detector", type=Path, required=True, help="TorchScript file")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS, metavar="NAME")
    parser.add_argument("--kimg", type=float, default=50, help="budget of a condition in thousand images")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--batch-size", type=int, help="images a step; default: 64 on a CPU, else 256")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--samples", type=int, default=2000, help="generated images a condition")
    parser.add_argument("--steps", type=int, default=18, help="of the sampler")
    parser.add_argument("--sample-batch", type=int, help="images sampled at once; default: 100 on a CPU, else 1,000")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="seconds from the start; see above")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    on_gpu = "cuda" in arguments.device
    batch_size = arguments.batch_size or (256 if on_gpu else 64)
    begun, longest = time.monotonic(), 0.0

    def record(kind, **values):
        line = json.dumps({"kind": kind, **values})
        print(line, flush=True)
        with arguments.out.open("a") as file:
            file.write(line + "\n")

    if not on_gpu:
        torch.set_num_threads(1)
    network = UNetConfig(model_channels=arguments.channels, channel_mult=(1, 2), num_blocks=1, dropout=0)
    # One pass over the images is too short to learn by heart, so there is neither dropout nor augmentation.
    augment = AugmentConfig(probability=0)
    training = TrainConfig(
        batch_size=batch_size,
        learning_rate=arguments.learning_rate,
        lr_rampup_kimg=None,
        ema_halflife_kimg=arguments.kimg / 20,
        ema_rampup_ratio=0.05,
    )
    sampling = SampleConfig(num_steps=arguments.steps, batch_size=arguments.sample_batch or (1000 if on_gpu else 100))
    settings = {
        "network": network.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "kimg": arguments.kimg,
        "samples": arguments.samples,
        "steps": arguments.steps,
        "seed": arguments.seed,
    }
    done = set()
    for line in read_lines(arguments.out):
        changed = [name for name, value in settings.items() if line["kind"] == "setup" and line[name] != value]
        if changed:
            parser.error(f"{arguments.out} has results of another {changed[0]}: choose another file")
        if line["kind"] == "result":
            done.add(line["condition"])
    record(
        "setup",
        **settings,
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, {arguments.device}",
        torch=torch.__version__,
    )
    pixels, labels = read_images(arguments.data)
    detector = torch.jit.load(str(arguments.detector), map_location=arguments.device).eval()
    batches = (pixels[start : start + 250] for start in range(0, len(pixels), 250))
    reference = frechet_reference(statistics_of(batches, detector, arguments.device))
    some = np.sort(np.random.default_rng(arguments.seed).permutation(len(pixels))[: arguments.samples])
    floor = statistics_of((pixels[rows] for rows in np.array_split(some, 10)), detector, arguments.device)
    # What as many real images reach: the part of every distance below that is owed to the number of samples alone.
    record("floor", distance=frechet_distance(floor, reference), samples=arguments.samples)

    left_out = []
    for condition in arguments.conditions:
        if condition in done:
            continue
        if time.monotonic() - begun + longest > arguments.limit_s:
            left_out.append(condition)
            continue
        started, cpu_started = time.monotonic(), time.process_time()
        classes = read_condition(condition, arguments.data, labels)
        counts = None if classes is None else np.bincount(classes)
        state = TrainState.create(
            network,
            EDMConfig(),
            training,
            augment,
            image_size=32,
            num_classes=0 if counts is None else len(counts),
            seed=arguments.seed,
            device=arguments.device,
        )
        prepared = time.process_time()
        curve = []
        for progress in train(
            state,
            pixels,
            classes,
            config=training,
            augment=augment,
            order=TrainingOrder(num_images=len(pixels), seed=arguments.seed),
            seed=arguments.seed,
            until_images=round(arguments.kimg * 1000),
            total_kimg=arguments.kimg,
            progress_every=round(arguments.kimg * 1000 / 25),
        ):
            curve.append((progress.images_seen, round(progress.loss, 3)))
            record(
                "loss",
                condition=condition,
                images_seen=progress.images_seen,
                loss=curve[-1][1],
                train_cpu_s=round(time.process_time() - prepared, 1),
            )
        trained = time.process_time()
        generated = sample(
            state.ema,
            range(arguments.samples),
            config=sampling,
            image_size=32,
            counts=counts,
            device=arguments.device,
        )
        distance = frechet_distance(statistics_of(generated, detector, arguments.device), reference)
        late = [loss for seen, loss in curve if seen > arguments.kimg * 500]
        record(
            "result",
            condition=condition,
            num_classes=0 if counts is None else len(counts),
            distance=round(distance, 4),
            loss_second_half=round(sum(late) / len(late), 3),
            images_seen=state.images_seen,
            skipped_steps=state.skipped_steps,
            prepare_cpu_s=round(prepared - cpu_started, 1),
            train_cpu_s=round(trained - prepared, 1),
            evaluate_cpu_s=round(time.process_time() - trained, 1),
            wall_s=round(time.monotonic() - started, 1),
            curve=curve,
        )
        longest = max(longest, time.monotonic() - started)
    results = {line["condition"]: line["distance"] for line in read_lines(arguments.out) if line["kind"] == "result"}
    report = {"benchmark": "conditioning", "kimg": arguments.kimg, "distance": results, "left_out": left_out}
    if "unconditional" in results:
        report["ratio"] = {name: round(value / results["unconditional"], 3) for name, value in results.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
