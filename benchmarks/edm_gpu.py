"""A C-EDM training step and the sampler on one GPU, against straightforward ones: `python benchmarks/edm_gpu.py`.

For the shipped spaces `cifar10` and `ffhq64`, their network, batch, microbatch and augmentation as they stand there, in
float16 (or `--precisions bfloat16`): images per second of the library's step (channels last, activations in half
precision, blocks compiled, fused Adam, batched average, nothing read back) and of the straightforward one of
`edm_step.py` (autocast, channels first, einsum attention, tensor by tensor; its loss is read back at every step), with
the same microbatches. The sides take turns. Also: the library's peak memory beside the predicted one, and whether a
step waits for the device anywhere (`torch.cuda.set_sync_debug_mode`).

The sampler is timed over few batches and over many, in turns with the same compiled float16 network on inputs that are
there already: `sampling_slope` is the time of a further batch over that of its 2 N - 1 evaluations alone,
`sampling_fixed_s` what a call costs once, and `sampling_ratio` what both come to for 50,000 images, over as many
evaluations: at most 1.05.

Needs neither Ray nor data. Every figure is printed as it is found, and one line of JSON with all of them at the end.
Compiling takes most of the time, two to three minutes a network and half of that for its sampler; either is begun only
where it would end within --limit-s if it took as long as the longest one before, and what is left out is said to be.
`--tiny` runs every line of this on a network of a few channels, on a CPU too (there without the compiler's back end,
which takes minutes), to see that it works; its figures say nothing.

`ratio` is the library's speed over the straightforward one's for cifar10 in float16: at least 1.8. On an H200 at least
2,485 images/s are wanted for cifar10 and 1,260 for ffhq64, which is 40 % of 790 TFLOP/s at 127.1 and 251.2 GFLOP an
image, forward and backward. `evaluation_share` is what sampling for a rung of the shipped space costs of the training
between two rungs, where they are nearest, at these speeds: at most 0.05.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from edm_step import NUM_CLASSES, compare_outputs, make_sides

from cedm_ray.diffusion import compilation
from cedm_ray.diffusion.compilation import compile_blocks, compiled
from cedm_ray.diffusion.memory import predict_memory
from cedm_ray.diffusion.sample import SampleConfig, sample
from cedm_ray.diffusion.unet import UNetConfig
from cedm_ray.search.space import read_space

SPACES = Path(__file__).parents[1] / "search_spaces"
GFLOP = {"cifar10": 127.1, "ffhq64": 251.2}
SAMPLES = 50_000
TINY = UNetConfig(model_channels=8, channel_mult=(1, 2), num_blocks=1)
SAMPLER_S = 60
"""Seconds that timing a compiled sampler may take."""


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def time_steps(side, batches, steps):
    """Images per second."""
    wait(batches.device)
    started = time.perf_counter()
    for number in range(steps):
        side.step(batches.draw(number * batches.batch_size), number * batches.batch_size)
    wait(batches.device)
    return steps * batches.batch_size / (time.perf_counter() - started)


def waits(side, batches):
    """What a step waits for the device for, in torch's words; None if nothing."""
    if batches.device.type != "cuda":
        return None
    batch = batches.draw(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        side.step(batch, batches.batch_size)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def measure_memory(ours, batches):
    """Peak bytes of the library's own step; what the straightforward side and the images hold is not the library's."""
    if batches.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    time_steps(ours, batches, 2)
    weights = sum(tensor.numel() * 4 for tensor in ours.state._live_tensors().values())
    return torch.cuda.max_memory_allocated() - before + weights


def time_sampler(average, size, sampling, device, *, budget_s, turns):
    """Yields (name, value) of what a call of the sampler costs once and with every batch.

    budget_s: what the longer call may take; it has 2 to 10 batches.
    """
    batch_size, calls = sampling.batch_size, 2 * sampling.num_steps - 1
    counts = np.ones(NUM_CLASSES, dtype=np.int64)
    about = {"config": sampling, "image_size": size, "counts": counts, "device": device}
    x = torch.randn(batch_size, 3, size, size, device=device)
    classes = torch.randint(NUM_CLASSES, (batch_size,), device=device)
    level = torch.ones(batch_size, device=device)

    def sampled(batches):
        wait(device)
        started = time.perf_counter()
        for _ in sample(average, range(batches * batch_size), **about):
            pass
        return time.perf_counter() - started

    def evaluated():
        """Seconds of one batch's evaluations."""
        average.net.compute_dtype = torch.float16
        started = time.perf_counter()
        with torch.inference_mode(), compiled([average.net] if sampling.compile else []):
            for _ in range(calls):
                average(x, level, classes)
        wait(device)
        average.net.compute_dtype = None
        return time.perf_counter() - started

    yield "sampling_compile_s", sampled(1) - sampled(1)
    many = min(max(int(budget_s / evaluated()), 2), 10)
    rounds = [(sampled(1), evaluated(), sampled(many), evaluated()) for _ in range(turns)]
    alone = statistics.median(seconds for _, first, _, second in rounds for seconds in (first, second))
    further = statistics.median((long - short) / (many - 1) for short, _, long, _ in rounds)
    fixed = statistics.median(short for short, *_ in rounds) - further
    batches = -(-SAMPLES // batch_size)
    yield "sampling_batches", [1, many]
    yield "sampling_slope", further / alone
    yield "sampling_fixed_s", fixed
    yield "sampling_ratio", (fixed + batches * further) / (batches * alone)
    yield "sampled_per_s", SAMPLES / (fixed + batches * further)


def measure(preset, precision, device, *, rounds, steps, tiny, ends, microbatch=None):
    """Yields (name, value). ends: when, by the monotonic clock, the sampler is no longer begun."""
    # The images are not read: speed does not depend on what they show.
    space = read_space(SPACES / f"{preset}.yaml", images="none")
    network, size, sampling = space.network, space.images.size, space.sampling
    training = space.training.model_copy(update={"precision": precision})
    if microbatch:
        training = training.model_copy(update={"microbatch": microbatch})
    if tiny:
        network, size, sampling = TINY, 16, SampleConfig(num_steps=3, batch_size=4)
        training = training.model_copy(update={"batch_size": 4, "microbatch": 2})
    ours, plain, batches = make_sides(network, training, size, device, space.augmentation)
    yield "batch_size", training.batch_size
    yield "microbatch", training.microbatch
    yield "output_difference", compare_outputs(ours, plain, batches)[0]
    started = time.perf_counter()
    first = batches.draw(0).piece(0, training.microbatch or training.batch_size)
    yield "compile_failed", compile_blocks(ours.state.net, first)
    time_steps(ours, batches, 2)
    compile_s = time.perf_counter() - started
    yield "compile_s", compile_s
    time_steps(plain, batches, 2)
    for side in (ours.state.optimizer, plain.optimizer):
        side.zero_grad(set_to_none=True)
    forget(device)
    measured = measure_memory(ours, batches)
    predicted = predict_memory(
        network,
        training,
        image_size=size,
        augment=space.augmentation,
        num_classes=NUM_CLASSES,
        precision=precision,
        device_type=device.type,
    )
    yield "measured_bytes", measured
    yield "predicted_bytes", predicted
    yield "memory_ratio", measured and predicted / measured
    yield "waits_for", waits(ours, batches)
    speeds = {"ours": [], "plain": []}
    for _ in range(rounds):
        speeds["plain"].append(time_steps(plain, batches, steps))
        speeds["ours"].append(time_steps(ours, batches, steps))
    images_per_s, plainly = (statistics.median(speeds[name]) for name in ("ours", "plain"))
    yield "images_per_s", images_per_s
    yield "plain_images_per_s", plainly
    yield "ratio", images_per_s / plainly
    yield "tflops", images_per_s * GFLOP[preset] / 1000
    if time.monotonic() + compile_s / 2 + SAMPLER_S > ends:
        yield "left_out", "the sampler"
        return
    average = ours.state.ema
    del ours, plain, batches, first, side
    forget(device)
    sampling = sampling.model_copy(update={"compile": True, "precision": "float16"})
    rate = None
    for name, value in time_sampler(average, size, sampling, device, budget_s=12, turns=2):
        rate = value if name == "sampled_per_s" else rate
        yield name, value
    between = 1000 * float(np.diff(space.rungs.rungs_kimg, prepend=0).min())
    yield "evaluation_share", space.evaluation.num_samples / rate / (between / images_per_s)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=GFLOP, default=list(GFLOP))
    parser.add_argument("--precisions", nargs="+", choices=["float16", "bfloat16"], default=["float16"])
    parser.add_argument("--microbatch", type=int, help="default: the space's own")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps of each side in a round")
    parser.add_argument("--limit-s", type=float, default=500, help="nothing is begun that might end later")
    parser.add_argument("--tiny", action="store_true", help="a network of a few channels, on a CPU too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("no GPU: this benchmark measures one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        compilation.BACKEND = "aot_eager"
    torch.backends.cudnn.benchmark = True  # As train() does, and good for both.
    started, longest = time.monotonic(), 0.0
    results, left_out = [], []
    for precision in arguments.precisions:
        for preset in arguments.presets:
            begun = time.monotonic()
            if begun - started + longest > arguments.limit_s:
                left_out.append(f"{preset} {precision}")
                continue
            results.append({"preset": preset, "precision": precision})
            about = {"rounds": arguments.rounds, "steps": arguments.steps, "tiny": arguments.tiny}
            about |= {"microbatch": arguments.microbatch, "ends": started + arguments.limit_s}
            for name, value in measure(preset, precision, device, **about):
                results[-1][name] = float(f"{value:.5g}") if isinstance(value, float) else value
                print(f"{time.monotonic() - started:6.1f} s  {preset} {precision}  {name}: {value}", flush=True)
            longest = max(longest, time.monotonic() - begun)
            torch._dynamo.reset()
            forget(device)
    report = {
        "benchmark": "edm_gpu",
        "ratio": results[0]["ratio"] if results else None,
        "results": results,
        "left_out": left_out,
        "tiny": arguments.tiny,
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
