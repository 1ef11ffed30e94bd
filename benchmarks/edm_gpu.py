"""A C-EDM training step and the sampler on one GPU, against straightforward ones: `python benchmarks/edm_gpu.py`.

For the networks of the `cifar10` and `ffhq64` presets, in float16 and bfloat16, at a microbatch that fits: images per
second of the library's step (channels last, activations in half precision, blocks compiled, fused Adam, batched
average, nothing read back) and of the straightforward one of `edm_step.py` (autocast, channels first, einsum attention,
tensor by tensor; its loss is read back at every step). The sides take turns. Also: the library's peak memory beside the
predicted one, whether a step waits for the device anywhere (`torch.cuda.set_sync_debug_mode`), and the sampler's time
over that of as many evaluations of the same compiled float16 network on inputs that are there already (at most 1.05).
Needs neither Ray nor data. Compiling takes most of the time, one to three minutes a network; what would be begun after
--limit-s is left out and said to be left out.

`ratio` is the library's speed over the straightforward one's for cifar10 in float16: at least 1.8. On an H200 at least
2,485 images/s are wanted for cifar10 and 1,260 for ffhq64, which is 40 % of 790 TFLOP/s at 127.1 and 251.2 GFLOP an
image, forward and backward. `evaluation_share` is what sampling for a rung of the shipped space (25,000 images) costs
of the training between two rungs, at least 20 million images, at these speeds: at most 0.05.
"""

import argparse
import gc
import json
import statistics
import time

import numpy as np
import torch
from edm_step import compare_outputs, make_sides

from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.compilation import compile_blocks, compiled
from cedm_ray.diffusion.memory import predict_memory
from cedm_ray.diffusion.sample import SampleConfig, sample
from cedm_ray.diffusion.unet import UNetConfig

SETTINGS = {
    # preset: network, image side, images a step, GFLOP an image, steps of the sampler
    "cifar10": (UNetConfig(), 32, 256, 127.1, 18),
    "ffhq64": (UNetConfig(channel_mult=(1, 2, 2, 2), dropout=0.05), 64, 128, 251.2, 40),
}
NUM_CLASSES, RUNG_SAMPLES, RUNG_IMAGES = 100, 25_000, 20e6


def time_steps(side, batches, batch_size, steps):
    """Images per second."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for number in range(steps):
        side.step(batches.draw(number * batch_size), number * batch_size)
    torch.cuda.synchronize()
    return steps * batch_size / (time.perf_counter() - started)


def waits(side, batches, batch_size):
    """What a step waits for the device for, in torch's words; None if nothing."""
    batch = batches.draw(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        side.step(batch, batch_size)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def time_sampler(average, size, batch_size, num_steps, turns=3, batches=4):
    """(images per second, time over that of the evaluations alone) of sampling, medians over turns of both sides."""
    config = SampleConfig(num_steps=num_steps, batch_size=batch_size, compile=True)
    counts = np.ones(NUM_CLASSES, dtype=np.int64)
    about = {"config": config, "image_size": size, "counts": counts, "device": "cuda"}
    for _ in sample(average, range(batch_size), **about):
        pass  # Compiles.
    x = torch.randn(batch_size, 3, size, size, device="cuda")
    classes = torch.randint(NUM_CLASSES, (batch_size,), device="cuda")
    level = torch.ones(batch_size, device="cuda")
    sampler, network = [], []
    for turn in range(turns):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in sample(average, range(turn * batches * batch_size, (turn + 1) * batches * batch_size), **about):
            pass
        sampler.append(time.perf_counter() - started)
        average.net.compute_dtype = torch.float16
        started = time.perf_counter()
        with torch.inference_mode(), compiled([average.net]):
            for _ in range(batches * (2 * num_steps - 1)):
                average(x, level, classes)
        torch.cuda.synchronize()
        network.append(time.perf_counter() - started)
        average.net.compute_dtype = None
    ratio = statistics.median(ours / alone for ours, alone in zip(sampler, network, strict=True))
    return batches * batch_size / statistics.median(sampler), ratio


def measure(preset, precision, batch_size, rounds, steps):
    network, size, _, gflop, num_steps = SETTINGS[preset]
    ours, plain, batches = make_sides(network, batch_size, size, "cuda", precision)
    difference, _ = compare_outputs(ours, plain, batches)
    found = {"preset": preset, "precision": precision, "batch_size": batch_size, "output_difference": difference}
    started = time.perf_counter()
    found["compile_failed"] = compile_blocks(ours.state.net, batches.draw(0))
    time_steps(ours, batches, batch_size, 3)
    found["compile_s"] = time.perf_counter() - started
    time_steps(plain, batches, batch_size, 3)
    for side in (ours.state.optimizer, plain.optimizer):
        side.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    time_steps(ours, batches, batch_size, 2)
    # What the straightforward side and the images hold is not the library's.
    weights = sum(tensor.numel() * 4 for tensor in ours.state._live_tensors().values())
    found["measured_bytes"] = torch.cuda.max_memory_allocated() - before + weights
    found["predicted_bytes"] = predict_memory(
        network,
        ours.config,
        image_size=size,
        augment=AugmentConfig(),
        num_classes=NUM_CLASSES,
        precision=precision,
        device_type="cuda",
    )
    found["memory_ratio"] = found["predicted_bytes"] / found["measured_bytes"]
    found["waits_for"] = waits(ours, batches, batch_size)
    speeds = {"ours": [], "plain": []}
    for _ in range(rounds):
        speeds["plain"].append(time_steps(plain, batches, batch_size, steps))
        speeds["ours"].append(time_steps(ours, batches, batch_size, steps))
    found["images_per_s"] = statistics.median(speeds["ours"])
    found["plain_images_per_s"] = statistics.median(speeds["plain"])
    found["ratio"] = found["images_per_s"] / found["plain_images_per_s"]
    found["tflops"] = found["images_per_s"] * gflop / 1000
    found["sampled_per_s"], found["sampling_ratio"] = time_sampler(ours.state.ema, size, batch_size, num_steps)
    found["evaluation_share"] = RUNG_SAMPLES / found["sampled_per_s"] / (RUNG_IMAGES / found["images_per_s"])
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of each side in a round")
    parser.add_argument("--batch-size", type=int, default=None, help="default: 256 for cifar10, 128 for ffhq64")
    parser.add_argument("--limit-s", type=float, default=300, help="nothing new is begun after so many seconds")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU: this benchmark measures one")
    torch.backends.cudnn.benchmark = True  # As train() does, and good for both.
    started = time.monotonic()
    results, left_out = [], []
    for precision in ("float16", "bfloat16"):
        for preset, (_, _, batch_size, *_) in SETTINGS.items():
            if time.monotonic() - started > arguments.limit_s:
                left_out.append(f"{preset} {precision}")
                continue
            size = arguments.batch_size or batch_size
            results.append(measure(preset, precision, size, arguments.rounds, arguments.steps))
            print(json.dumps(results[-1]), flush=True)
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
    report = {
        "benchmark": "edm_gpu",
        "ratio": results[0]["ratio"],
        "results": results,
        "left_out": left_out,
        "machine": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
