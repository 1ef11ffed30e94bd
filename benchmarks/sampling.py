"""Sampling against nothing but the network: `python benchmarks/sampling.py`, on a GPU with `--device cuda`.

18 steps of the Heun sampler are 35 evaluations of the network. One side samples `--batches` batches from their seeds to
uint8 images on the host; the other calls the same network 35 times for each of them, on inputs that are there already.
What is over is the sampler's own work: latents and conditions from one CPU generator an image, the float64 state, the
way to the host. The two take turns, batch by batch, and the first turn is thrown away. `ratio` is the median over the
turns of the sampler's time over the network's: at most 1.05. CPU time of one thread (set OMP_NUM_THREADS=1) on a CPU,
wall time on a GPU. A busy machine moves it by several percent, so that on a CPU `own_ratio` says the same from within:
the sampler's time over the part of it that passes in its calls of the network.

The network on a CPU is that of the `cifar10` preset with fewer channels; the fewer, the harder the sampler has it.
`--guidance 1` doubles the evaluations on both sides. `latents_us` is the time of one image's latent and condition.
"""

import argparse
import json
import os
import platform
import statistics
import time

import numpy as np
import torch

from cedm_ray.diffusion.edm import Denoiser, EDMConfig
from cedm_ray.diffusion.guidance import guided
from cedm_ray.diffusion.sample import SampleConfig, draw_latents_and_conditions, sample, sigma_steps
from cedm_ray.diffusion.unet import UNet, UNetConfig

CLASSES = 100


def clock(device):
    """Seconds, after the device has done what it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(device, function):
    start = clock(device)
    function()
    return clock(device) - start


@torch.inference_mode()
def forwards(denoiser, config, batch, size, device):
    """The network's part of one batch: as many evaluations, at the same noise levels."""
    x = torch.randn(batch, 3, size, size, device=device)
    classes = torch.randint(CLASSES, (batch,), device=device)
    levels = [torch.full((batch,), sigma, device=device) for sigma in sigma_steps(config).float().tolist()[:-1]]
    led = guided(denoiser, config.guidance)

    def run():
        with torch.inference_mode():
            for index, level in enumerate(levels):
                led(x, level, classes)
                if index:
                    # Heun's correction at the level that the step before it reached.
                    led(x, level, classes)

    return run


class Timed(torch.nn.Module):
    """A denoiser that adds up the CPU seconds of its calls."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.num_classes, self.net = denoiser, denoiser.num_classes, denoiser.net
        self.seconds = 0.0
        self.eval()

    def forward(self, x, sigma, classes):
        start = time.process_time()
        denoised = self.denoiser(x, sigma, classes)
        self.seconds += time.process_time() - start
        return denoised


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--channels", type=int, help="of the network; default: 32 on a CPU, else 128")
    parser.add_argument("--blocks", type=int, help="residual blocks a level; default: 1 on a CPU, else 4")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, help="images at once; default: 4 on a CPU, else 256")
    parser.add_argument("--batches", type=int, default=1, help="batches of one turn of the sampler")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of each side, after one thrown away")
    parser.add_argument("--steps", type=int, default=18, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=0.0, help="weight of classifier-free guidance")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_cpu = device.type == "cpu"
    channels = arguments.channels or (32 if on_cpu else 128)
    blocks = arguments.blocks or (1 if on_cpu else 4)
    batch = arguments.batch or (4 if on_cpu else 256)
    network = UNetConfig(model_channels=channels, num_blocks=blocks, label_dropout=0.1)
    denoiser = Denoiser(UNet(network, arguments.size, CLASSES, 0), EDMConfig()).to(device).eval().requires_grad_(False)
    # Both sides in float32 and as they are.
    exact = {"precision": "float32", "compile": False}
    config = SampleConfig(num_steps=arguments.steps, batch_size=batch, guidance=arguments.guidance, **exact)
    watched = Timed(denoiser) if on_cpu else denoiser
    counts = np.arange(1, CLASSES + 1)
    images = batch * arguments.batches
    calls = 2 * arguments.steps - 1
    print(f"{images} images of {arguments.size} pixels in batches of {batch}, {channels} channels: {calls} evaluations")
    network_alone = forwards(denoiser, config, batch, arguments.size, device)

    def sampled(turn):
        seeds = range(turn * images, (turn + 1) * images)
        about = {"config": config, "image_size": arguments.size, "counts": counts, "device": device}
        for found in sample(watched, seeds, **about):
            assert found.dtype == np.uint8

    seconds = {"sampler": [], "network": [], "within": []}
    for turn in range(1 + arguments.rounds):
        watched.seconds = 0.0
        seconds["sampler"].append(timed(device, lambda turn=turn: sampled(turn)))
        seconds["within"].append(watched.seconds)
        seconds["network"].append(sum(timed(device, network_alone) for _ in range(arguments.batches)))
        print(f"turn {turn}: sampler {seconds['sampler'][-1]:.3f}, network {seconds['network'][-1]:.3f}")
    start = time.process_time()
    draw_latents_and_conditions(range(256), arguments.size, counts)
    latents_s = (time.process_time() - start) / 256
    seconds = {name: values[1:] for name, values in seconds.items()}
    turns = zip(seconds["sampler"], seconds["network"], strict=True)
    report = {
        "benchmark": "sampling",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "size": arguments.size,
        "channels": channels,
        "blocks": blocks,
        "batch": batch,
        "images": images,
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "ratio": round(statistics.median(ours / network for ours, network in turns), 4),
        "best_ratio": round(min(seconds["sampler"]) / min(seconds["network"]), 4),
        "own_ratio": round(sum(seconds["sampler"]) / sum(seconds["within"]), 4) if on_cpu else None,
        "images_per_second": round(images / statistics.median(seconds["sampler"]), 2),
        "latents_us": round(latents_s * 1e6, 1),
        "sampler_s": [round(value, 3) for value in seconds["sampler"]],
        "network_s": [round(value, 3) for value in seconds["network"]],
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
