"""One TEMI step at the paper's shape against a plain loop over heads: `python benchmarks/temi_step.py --clusters 400`.

Both train H = 50 heads (D = 768, hidden 512, bottleneck 256) on the same 512 pairs in float32 from the same weights.
The loop is one `nn.Module` for each head, autograd through the textbook loss, torch's default AdamW and an EMA in a
loop. The two take turns in one process; the first round is thrown away. `ratio` is the loop's median CPU time over
ours, to be read with one thread (OMP_NUM_THREADS=1): at least 1.15 at C = 100 and 400, and 1.3 at C = 1600.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time

import numpy as np
import torch
from torch import nn

from cedm_ray.clustering.temi import TemiConfig, TemiTraining


class LoopHead(nn.Module):
    """One head out of torch's own layers."""

    def __init__(self, heads, head):
        super().__init__()
        in_features, hidden = heads.weight_1.shape[1:]
        num_clusters, bottleneck = heads.prototypes.shape[1:]
        self.first, self.second = nn.Linear(in_features, hidden), nn.Linear(hidden, bottleneck)
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, num_clusters, bias=False), dim=0)
        with torch.no_grad():
            self.first.weight.copy_(heads.weight_1[head].T)
            self.first.bias.copy_(heads.bias_1[head])
            self.second.weight.copy_(heads.weight_2[head].T)
            self.second.bias.copy_(heads.bias_2[head])
            self.last.parametrizations.weight.original0.copy_(heads.gain[head][:, None])
            self.last.parametrizations.weight.original1.copy_(heads.prototypes[head])

    def forward(self, x):
        hidden = self.second(nn.functional.gelu(self.first(x)))
        return self.last(nn.functional.normalize(hidden, dim=-1))


class Loop:
    """The plain loop's training state and step."""

    def __init__(self, heads, config):
        self.config = config
        self.student = nn.ModuleList(LoopHead(heads, h) for h in range(config.num_heads))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        num_clusters = heads.prototypes.shape[1]
        self.marginal = [torch.full((num_clusters,), 1 / num_clusters) for _ in self.student]
        parameters = list(self.student.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups)

    def step(self, x, rate):
        config = self.config
        with torch.no_grad():
            teacher = [(head(x) / config.teacher_temperature).softmax(dim=-1) for head in self.teacher]
            halves = [probabilities.chunk(2) for probabilities in teacher]
            weight = torch.stack([(a * b).sum(dim=-1) for a, b in halves]).mean(dim=0)
        losses = []
        for h, head in enumerate(self.student):
            first, second = (head(x) / config.student_temperature).softmax(dim=-1).chunk(2)
            momentum = config.marginal_momentum
            self.marginal[h] = momentum * self.marginal[h] + (1 - momentum) * teacher[h].mean(dim=0)
            views = [
                (weight * -((s * t) ** config.gamma / self.marginal[h]).sum(dim=-1).log()).mean()
                for s, t in ((first, halves[h][1]), (second, halves[h][0]))
            ]
            losses.append((views[0] + views[1]) / 2)
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                old.mul_(config.teacher_momentum).add_(new, alpha=1 - config.teacher_momentum)
        return torch.stack(losses).detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=400, help="C")
    parser.add_argument("--heads", type=int, default=50, help="H")
    parser.add_argument("--head-group", type=int, default=None, help="heads at once; default: as fit_temi chooses")
    parser.add_argument("--rounds", type=int, default=4, help="timed steps of each, after one that is thrown away")
    arguments = parser.parse_args()
    config = TemiConfig(num_heads=arguments.heads, head_group=arguments.head_group)
    ours = TemiTraining(768, arguments.clusters, config, seed=0, device=torch.device("cpu"))
    loop = Loop(ours.student, config)
    x_all = torch.from_numpy(np.random.default_rng(0).normal(size=(1 + arguments.rounds, 1024, 768)).astype(np.float32))
    print(f"one step, C = {arguments.clusters}, H = {arguments.heads}: plain loop against grouped heads, CPU seconds")
    seconds = {"loop": [], "ours": []}
    difference = 0.0
    for round_, x in enumerate(x_all):
        losses = {}
        for name, training in (("loop", loop), ("ours", ours)):
            start = time.process_time()
            losses[name] = training.step(x, 2e-4)
            seconds[name].append(time.process_time() - start)
        difference = max(difference, (losses["loop"] - losses["ours"]).abs().max().item())
        print(f"round {round_}: loop {seconds['loop'][-1]:.3f}, ours {seconds['ours'][-1]:.3f}")
    timed = {name: values[1:] for name, values in seconds.items()}
    report = {
        "benchmark": "temi_step",
        "clusters": arguments.clusters,
        "heads": arguments.heads,
        "head_group": arguments.head_group,
        "ratio": round(statistics.median(timed["loop"]) / statistics.median(timed["ours"]), 3),
        "best_ratio": round(min(timed["loop"]) / min(timed["ours"]), 3),
        "loop_s": [round(value, 3) for value in timed["loop"]],
        "ours_s": [round(value, 3) for value in timed["ours"]],
        "max_loss_difference": difference,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
