"""A C-EDM training step on one GPU against a straightforward one: `python benchmarks/edm_gpu.py`.

For the networks of the `cifar10` and `ffhq64` presets, in float16 and bfloat16, at a microbatch that fits: images per
second of the library's step (channels last, activations in half precision, blocks compiled, fused Adam, batched
average, nothing read back) and of the straightforward one of `edm_step.py` (autocast, channels first, einsum attention,
tensor by tensor; its loss is read back at every step). The sides take turns. Also: the library's step without
torch.compile, its peak memory beside the predicted one, and whether a step waits for the device anywhere
(`torch.cuda.set_sync_debug_mode`). Needs neither Ray nor data. Under nine minutes on an H100 or H200, compiling
included; what would pass --limit-s is left out and said to be left out.

`ratio` is the library's speed over the straightforward one's for cifar10 in float16: at least 1.8. On an H200 at least
2,485 images/s are wanted for cifar10 and 1,260 for ffhq64, which is 40 % of 790 TFLOP/s at 127.1 and 251.2 GFLOP an
image, forward and backward.
"""

import argparse
import gc
import json
import statistics
import time

import torch
from edm_step import compare_outputs, make_sides

from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.compilation import compile_blocks
from cedm_ray.diffusion.memory import predict_memory
from cedm_ray.diffusion.unet import UNetConfig

SETTINGS = {
    # preset: network, image side, images a step, GFLOP an image
    "cifar10": (UNetConfig(), 32, 256, 127.1),
    "ffhq64": (UNetConfig(channel_mult=(1, 2, 2, 2), dropout=0.05), 64, 128, 251.2),
}
NUM_CLASSES = 100


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


def measure(preset, precision, batch_size, rounds, steps):
    network, size, _, gflop = SETTINGS[preset]
    ours, plain, batches = make_sides(network, batch_size, size, "cuda", precision)
    difference, _ = compare_outputs(ours, plain, batches)
    found = {"preset": preset, "precision": precision, "batch_size": batch_size, "output_difference": difference}
    time_steps(ours, batches, batch_size, 3)
    found["eager_images_per_s"] = time_steps(ours, batches, batch_size, steps)
    ours.state.optimizer.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    time_steps(ours, batches, batch_size, 2)
    # What the straightforward side and the images hold is not the library's.
    weights = sum(tensor.numel() * 4 for tensor in ours.state._live_tensors().values())
    found["measured_bytes"] = torch.cuda.max_memory_allocated() - before + weights
    training, augment = ours.config, AugmentConfig()
    found["predicted_bytes"] = predict_memory(
        network,
        training,
        image_size=size,
        augment=augment,
        num_classes=NUM_CLASSES,
        precision=precision,
        device_type="cuda",
    )
    started = time.perf_counter()
    found["compile_failed"] = compile_blocks(ours.state.net, batches.draw(0))
    time_steps(ours, batches, batch_size, 3)
    found["compile_s"] = time.perf_counter() - started
    found["waits_for"] = waits(ours, batches, batch_size)
    time_steps(plain, batches, batch_size, 3)
    speeds = {"ours": [], "plain": []}
    for _ in range(rounds):
        speeds["plain"].append(time_steps(plain, batches, batch_size, steps))
        speeds["ours"].append(time_steps(ours, batches, batch_size, steps))
    found["images_per_s"] = statistics.median(speeds["ours"])
    found["plain_images_per_s"] = statistics.median(speeds["plain"])
    found["ratio"] = found["images_per_s"] / found["plain_images_per_s"]
    found["tflops"] = found["images_per_s"] * gflop / 1000
    found["memory_ratio"] = found["predicted_bytes"] / found["measured_bytes"]
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps of each side in a round")
    parser.add_argument("--batch-size", type=int, default=None, help="default: 256 for cifar10, 128 for ffhq64")
    parser.add_argument("--limit-s", type=float, default=420, help="nothing new is begun after so many seconds")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU: this benchmark measures one")
    torch.backends.cudnn.benchmark = True  # As train() does, and good for both.
    started = time.monotonic()
    results, left_out = [], []
    for preset, (_, _, batch_size, _) in SETTINGS.items():
        for precision in ("float16", "bfloat16"):
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
