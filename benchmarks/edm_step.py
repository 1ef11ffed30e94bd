"""One C-EDM training step against a straightforward one on a CPU: `python benchmarks/edm_step.py --net cifar10`.

The straightforward side is written from the method's description: the same network with its layers one by one (an
affine layer a block, attention by einsum in float32, resampling by depthwise convolutions with the filter [1, 1], a
dense one-hot label, channels first), Adam and the weight average as loops over tensors, and non-finite gradients
replaced tensor by tensor. It stands for code that nobody tuned, and is not any repository's.

Both sides start from the same weights and see the same images, noise levels and noise in float32; first their outputs
are compared with dropout off (in float64 too, where they differ by nothing but the straightforward attention, which
stays in float32), then full steps (dropout on) take turns in one process, and the first round is thrown
away. `ratio` is the straightforward side's median CPU time over ours, to be read with one thread (OMP_NUM_THREADS=1):
at least 1.05 is wanted for the `cifar10` preset at batch 2 and a 32-channel network at batch 8; `--net 16` is the small
network of two levels that a CPU is used for, at batch 32. `paired_ratio` is the median over rounds of the two sides'
ratio in one round, which a busy machine disturbs less.
"""

import argparse
import copy
import json
import math
import os
import platform
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.batches import BatchSource
from cedm_ray.diffusion.edm import EDMConfig, edm_loss
from cedm_ray.diffusion.ema import ema_decay, update_ema
from cedm_ray.diffusion.train import (
    TrainConfig,
    TrainState,
    accumulate_gradients,
    gradient_norm,
    not_finite,
    step_unless,
)
from cedm_ray.diffusion.unet import UNetConfig

NETS = {
    "cifar10": (UNetConfig(), 2),
    "32": (UNetConfig(model_channels=32), 8),
    "16": (UNetConfig(model_channels=16, channel_mult=(1, 2), num_blocks=1, dropout=0.05), 32),
}
NUM_CLASSES, SIZE = 100, 32


class PlainAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), 3, x.shape[1], -1).unbind(1)
        weights = torch.einsum("ncq,nck->nqk", q.float(), k.float() / math.sqrt(k.shape[1])).softmax(dim=2).to(q.dtype)
        mixed = torch.einsum("nqk,nck->ncq", weights, v)
        return (x + self.proj(mixed.reshape(x.shape))) * math.sqrt(0.5)


class PlainBlock(nn.Module):
    def __init__(self, in_channels, out_channels, width, dropout, up=False, down=False, attention=False):
        super().__init__()
        self.up, self.down, self.dropout = up, down, dropout
        self.norm0 = nn.GroupNorm(min(32, in_channels // 4), in_channels, eps=1e-6)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(width, out_channels)
        self.norm1 = nn.GroupNorm(min(32, out_channels // 4), out_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = None
        if in_channels != out_channels or up or down:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.attention = PlainAttention(out_channels) if attention else None
        self.register_buffer("box", torch.ones(1, 1, 2, 2) / 4)

    def resample(self, x):
        box = self.box.to(x.dtype).tile(x.shape[1], 1, 1, 1)
        if self.down:
            return F.conv2d(x, box, groups=x.shape[1], stride=2)
        return F.conv_transpose2d(x, box * 4, groups=x.shape[1], stride=2) if self.up else x

    def forward(self, x, embedding):
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = self.resample(x)
        x = (h + (x if self.shortcut is None else self.shortcut(x))) * math.sqrt(0.5)
        return x if self.attention is None else self.attention(x)


class PlainUNet(nn.Module):
    """The same network from torch's own layers, with the weights of ours."""

    def __init__(self, ours):
        super().__init__()
        config, width = ours.config, 4 * ours.config.model_channels
        self.num_classes, self.base = ours.num_classes, config.model_channels
        self.map_class = nn.Linear(ours.num_classes, self.base) if ours.num_classes else None
        self.map_augment = nn.Linear(ours.augment_dim, self.base, bias=False) if ours.augment_dim else None
        self.map0, self.map1 = nn.Linear(self.base, width), nn.Linear(width, width)
        self.conv_in = nn.Conv2d(3, self.base, 3, padding=1)

        def copied(block):
            convs = block.conv0.in_channels, block.conv0.out_channels, width, config.dropout
            return PlainBlock(*convs, up=block.up, down=block.down, attention=block.attention is not None)

        self.encoder, self.middle, self.decoder = (
            nn.ModuleList(map(copied, blocks)) for blocks in (ours.encoder, ours.middle, ours.decoder)
        )
        channels = ours.norm_out.num_channels
        self.norm_out = nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)
        weights = dict(ours.state_dict())
        if "map_class.weight" in weights:
            weights["map_class.weight"] = weights["map_class.weight"].T
        blocks = [f"{part}.{i}" for part in ("encoder", "middle", "decoder") for i in range(len(getattr(self, part)))]
        for kind in ("weight", "bias"):
            for name, piece in zip(blocks, weights.pop(f"affines.{kind}").split(ours.affines.sizes), strict=True):
                weights[f"{name}.affine.{kind}"] = piece
        missing, unexpected = self.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        assert all(name.endswith("box") for name in missing), missing

    def forward(self, x, c_noise, classes, augment_labels):
        frequencies = (1 / 10_000) ** (torch.arange(self.base // 2, device=x.device) / (self.base // 2 - 1))
        phases = c_noise[:, None].float() * frequencies
        embedding = torch.cat((phases.sin(), phases.cos()), dim=1).to(x.dtype)
        if classes is not None:
            one_hot = F.one_hot(classes, self.num_classes).to(x.dtype)
            embedding = embedding + self.map_class(one_hot * math.sqrt(self.num_classes))
        if augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels.to(x.dtype))
        embedding = F.silu(self.map1(F.silu(self.map0(embedding))))
        x = self.conv_in(x)
        skips = [x]
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.decoder:
            x = block(x if block.up else torch.cat((x, skips.pop()), dim=1), embedding)
        return self.conv_out(F.silu(self.norm_out(x)))


class PlainDenoiser(nn.Module):
    def __init__(self, net, sigma_data=0.5):
        super().__init__()
        self.net, self.sigma_data = net, sigma_data

    def forward(self, x, sigma, classes, augment_labels):
        sigma = sigma.reshape(-1, 1, 1, 1)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        residual = self.net(c_in * x, (sigma.log() / 4).flatten(), classes, augment_labels)
        return c_skip * x + c_out * residual.float()


class Plain:
    """The straightforward training state and step."""

    def __init__(self, ours, config, half=None):
        device = ours.device
        self.config, self.half = config, half
        self.net = PlainDenoiser(PlainUNet(ours.net.net)).to(device).train()
        self.average = PlainDenoiser(PlainUNet(ours.ema.net)).to(device).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.learning_rate, foreach=False, fused=False)
        self.scaler = torch.amp.GradScaler(device.type) if half == torch.float16 else None
        self.device = device

    def add_gradients(self, batch, count):
        """Those of a microbatch, of the mean over `count` images; returns its share of that mean."""
        clean, labels = batch.clean_images()
        clean = clean.contiguous()
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            noisy = clean + batch.sigma.reshape(-1, 1, 1, 1) * batch.noise
            denoised = self.net(noisy, batch.sigma, batch.conditions, labels)
        sigma = batch.sigma.reshape(-1, 1, 1, 1)
        weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
        loss = (weight * (denoised - clean) ** 2).sum() / count
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return loss.detach()

    def step(self, batch, images_seen):
        self.optimizer.zero_grad(set_to_none=True)
        count = len(batch.pixels)
        microbatch = self.config.microbatch or count
        pieces = (batch.piece(start, microbatch) for start in range(0, count, microbatch))
        loss = sum(self.add_gradients(piece, count) for piece in pieces)
        if self.scaler is None:
            for parameter in self.net.parameters():
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        decay = ema_decay(images_seen, count, halflife_kimg=500, rampup_ratio=0.05)
        with torch.no_grad():
            for old, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
                old.copy_(new.detach().lerp(old, decay))
        # As the straightforward code tells its loss: at every step.
        return loss.item()


class Ours:
    """The parts of the library's own loop that make one step."""

    def __init__(self, state, config):
        self.state, self.config = state, config
        self.weights, self.averages = list(state.net.parameters()), list(state.ema.parameters())
        state.net.train()

    def step(self, batch, images_seen):
        loss = accumulate_gradients(self.state, batch, self.config, 1)
        if self.state.scaler is not None:
            self.state.scaler.unscale_(self.state.optimizer)
        bad = not_finite(gradient_norm(self.weights))
        step_unless(bad, self.state)
        share = (1 - ema_decay(images_seen, self.config.batch_size, halflife_kimg=500, rampup_ratio=0.05)) * (1 - bad)
        update_ema(self.averages, self.weights, share.item() if self.state.device.type == "cpu" else share)
        return loss


def make_sides(network, config, size, device, augment=None):
    """(ours, the straightforward one, their batches) of a TrainConfig whose precision is not "auto"."""
    augment, batch_size, precision = augment or AugmentConfig(), config.batch_size, config.precision
    state = TrainState.create(network, EDMConfig(), config, augment, size, NUM_CLASSES, seed=0, device=device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight, average in zip(state.net.parameters(), state.ema.parameters(), strict=True):
            # A fresh network answers nearly nothing, and then outputs would agree whatever the network did.
            weight.add_((torch.randn(weight.shape, generator=generator) * 0.02).to(weight.device))
            average.copy_(weight)
    half = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]
    plain = Plain(state, config, half)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4 * max(batch_size, 64), 3, size, size), dtype=np.uint8)
    batches = BatchSource(
        pixels,
        rng.integers(0, NUM_CLASSES, len(pixels)),
        batch_size=batch_size,
        share=slice(0, batch_size),
        edm=EDMConfig(),
        augment=augment,
        order=TrainingOrder(num_images=len(pixels), seed=0),
        seed=0,
        device=torch.device(device),
    )
    return Ours(state, config), plain, batches


def compare_outputs(ours, plain, batches):
    """(largest difference of the denoised images over their largest value, relative difference of the losses), of the
    first microbatch."""
    batch = batches.draw(0)
    batch = batch.piece(0, ours.config.microbatch or len(batch.pixels))
    clean, labels = batch.clean_images()
    noisy = clean + batch.sigma.reshape(-1, 1, 1, 1) * batch.noise
    ours.state.net.eval(), plain.net.eval()
    with torch.no_grad():
        first = ours.state.net(noisy, batch.sigma, batch.conditions, labels)
        second = plain.net(noisy.contiguous(), batch.sigma, batch.conditions, labels)
        arguments = clean, batch.conditions, labels, batch.sigma, batch.noise
        losses = [edm_loss(net, *arguments, sigma_data=0.5).sum() for net in (ours.state.net, plain.net)]
    ours.state.net.train(), plain.net.train()
    difference = ((first - second).abs().max() / second.abs().max()).item()
    return difference, ((losses[0] - losses[1]).abs() / losses[1]).item()


def compare_in_double(ours, plain, batches):
    """Largest difference of the denoised images over their largest value, computed in float64: (between the two, where
    the straightforward attention stays in float32; of ours in float32 from the exact ones; of the other's).

    Rounding in float32 passes 1e-6 in a network of this depth on either side; whether two implementations are of one
    function is seen where it cannot.
    """
    batch = batches.draw(0)
    clean, labels = batch.clean_images()
    noisy = clean + batch.sigma.reshape(-1, 1, 1, 1) * batch.noise
    arguments = noisy, batch.sigma, batch.conditions, labels
    with torch.no_grad():
        exact = [
            copy.deepcopy(net)
            .double()
            .eval()(*(v.double() if v is not None and v.is_floating_point() else v for v in arguments))
            for net in (ours.state.net, plain.net)
        ]
        rounded = [net.eval()(*arguments) for net in (ours.state.net, plain.net)]
    ours.state.net.train(), plain.net.train()
    largest = exact[0].abs().max()
    pairs = (exact[0], exact[1]), (rounded[0], exact[0]), (rounded[1], exact[0])
    return [((a - b).abs().max() / largest).item() for a, b in pairs]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="cifar10")
    parser.add_argument("--batch-size", type=int, default=None, help="default: 2, 8 and 32")
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each, after one that is thrown away")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network, batch_size = NETS[arguments.net]
    batch_size = arguments.batch_size or batch_size
    config = TrainConfig(batch_size=batch_size, precision="float32")
    ours, plain, batches = make_sides(network, config, SIZE, "cpu")
    difference, loss_difference = compare_outputs(ours, plain, batches)
    print(f"one step of {arguments.net}, batch {batch_size}: straightforward against ours, CPU seconds")
    between, from_ours, from_plain = compare_in_double(ours, plain, batches)
    print(f"outputs differ by {difference:.1e} of the largest value, losses by {loss_difference:.1e}")
    print(
        f"in float64 by {between:.1e}, from which ours is {from_ours:.1e} away in float32, the other {from_plain:.1e}"
    )
    seconds = {"plain": [], "ours": []}
    for number in range(1 + arguments.rounds):
        batch = batches.draw(number * batch_size)
        for name, side in (("plain", plain), ("ours", ours))[:: 1 if number % 2 else -1]:
            start = time.process_time()
            side.step(batch, number * batch_size)
            seconds[name].append(time.process_time() - start)
        print(f"round {number}: straightforward {seconds['plain'][-1]:.3f}, ours {seconds['ours'][-1]:.3f}", flush=True)
    timed = {name: values[1:] for name, values in seconds.items()}
    report = {
        "benchmark": "edm_step",
        "net": arguments.net,
        "batch_size": batch_size,
        "ratio": round(statistics.median(timed["plain"]) / statistics.median(timed["ours"]), 3),
        "best_ratio": round(min(timed["plain"]) / min(timed["ours"]), 3),
        "paired_ratio": round(statistics.median(a / b for a, b in zip(timed["plain"], timed["ours"], strict=True)), 3),
        "plain_s": [round(value, 3) for value in timed["plain"]],
        "ours_s": [round(value, 3) for value in timed["ours"]],
        "output_difference": difference,
        "loss_difference": loss_difference,
        "output_difference_float64": between,
        "rounding_of_ours": from_ours,
        "rounding_of_plain": from_plain,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
