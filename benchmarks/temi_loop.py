"""The opponent of the TEMI benchmarks: a plain loop over one `nn.Module` for each head, autograd through the textbook
loss, torch's default AdamW and an EMA in a loop. It starts from the weights of a `Heads`, so that losses compare."""

import copy

import torch
from torch import nn

from cedm_ray.clustering.heads import Heads


class LoopHead(nn.Module):
    """One head out of torch's own layers, with the weights of head number `head` of `heads`."""

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
        device = heads.gain.device
        self.student = nn.ModuleList(LoopHead(heads, h) for h in range(config.num_heads)).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        num_clusters = heads.prototypes.shape[1]
        self.marginal = [torch.full((num_clusters,), 1 / num_clusters, device=device) for _ in self.student]
        parameters = list(self.student.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups)

    @classmethod
    def new(cls, in_features, num_clusters, config, *, seed, device):
        """A loop from the weights that a fit of this seed starts from."""
        generator = torch.Generator().manual_seed(seed)
        sizes = {"hidden": config.hidden, "bottleneck": config.bottleneck, "generator": generator}
        return cls(Heads(config.num_heads, in_features, num_clusters, **sizes).to(device), config)

    def step(self, x, rate):
        """One step on the rows x [2B, D], all anchors and then all partners; the losses [H]."""
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


class Pairs(torch.utils.data.Dataset):
    """An image and one of its neighbors, drawn anew each time, for a DataLoader."""

    def __init__(self, rows, partners):
        self.rows, self.partners = rows, partners

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        partner = self.partners[index, torch.randint(self.partners.shape[1], ())]
        return self.rows[index], self.rows[partner]
