"""TEMI: many small heads that learn to give an image and its neighbor the same cluster, and to use all clusters.

Shapes: N images, B pairs of a step (2B rows: first the anchors, then their partners), D feature width, H heads,
G heads of a group, C clusters, m neighbors. Source: Adaloglou et al., "Exploring the Limits of Deep Image Clustering
using Pretrained Models"; Eq. 1 and Table 8 of the paper. The marginal's and the teacher's momentum are two settings:
the values 0.9 and 0.996 are those that the published assignments were made with.

The loss of head i, with student and teacher probabilities S and T at their temperatures, the teacher's marginal p_i
and the pair weight w, over both views a and the other view a' of each pair b:

    L_i = -1/(2B) sum_(a, b) w(b) log sum_c (S_i^a(b, c) T_i^a'(b, c))^gamma / p_i(c)

It is computed from log-probabilities, and its gradient is known: w gamma / (2B tau) (S - softmax of the summed term's
logarithm), so neither an underflowing product nor a graph over [H, 2B, C] is needed. The weight couples all heads, so
a step runs the teacher over all heads first, and then the student group by group.
"""

import copy
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.heads import Heads
from cedm_ray.config import Config

_BATCH_OF_LEARNING_RATE = 256
_CPU_HEAD_GROUP = 8
_ASSIGNMENT_TILE = 4096
_FIRST_ROWS_NAMED = 5


class TemiConfig(Config):
    """How TEMI is trained; the defaults are Table 8 of the paper, and where it is silent the TEMI authors' recipe.

    num_heads: H. hidden, bottleneck: widths of the heads' two layers. num_neighbors: m, neighbors that partners are
    drawn from. batch_size: pairs of a step; N where there are fewer images. epochs: passes over the images.
    learning_rate, min_learning_rate: peak and end of the cosine, both for 256 pairs and multiplied by batch / 256.
    warmup_epochs: linear rise from 0, clipped to `epochs`. weight_decay: AdamW's, on all but biases.
    gamma: exponent of Eq. 1 in (0.5, 1]; 0.6 for the upper bound, 1 for the lower. student_temperature,
    teacher_temperature: of the two softmaxes. teacher_momentum, marginal_momentum: share of the old value that the
    teacher's weights and its marginal keep at each step, in [0, 1). freeze_last_layer_epochs: first epochs in which
    the last layer is not trained. feature_norm: "none" feeds the features as they are, "standardize" subtracts the
    mean and divides by the standard deviation of each dimension, "l2" scales each row to length 1.
    head_group: heads computed at once, which changes speed and memory alone; None = 8 on a CPU, all on a GPU.
    """

    num_heads: int = Field(default=50, ge=1)
    hidden: int = Field(default=512, ge=1)
    bottleneck: int = Field(default=256, ge=1)
    num_neighbors: int = Field(default=50, ge=1)
    batch_size: int = Field(default=512, ge=1)
    epochs: int = Field(default=200, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    min_learning_rate: float = Field(default=1e-4, ge=0)
    warmup_epochs: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    gamma: float = Field(default=0.6, gt=0.5, le=1)
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: float = Field(default=0.1, gt=0)
    teacher_momentum: float = Field(default=0.996, ge=0, lt=1)
    marginal_momentum: float = Field(default=0.9, ge=0, lt=1)
    freeze_last_layer_epochs: int = Field(default=1, ge=0)
    feature_norm: Literal["none", "standardize", "l2"] = "none"
    head_group: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _rates_in_order(self) -> "TemiConfig":
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate must not exceed learning_rate {self.learning_rate}, got {self.min_learning_rate}"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TemiProgress:
    """Where a fit stands after an epoch.

    epoch: epochs done, from 1 to `epochs`. loss: Eq. 1 averaged over heads and steps of this epoch. learning_rate:
    that of its last step. num_used: C^u if the fit ended here, by the head that is best so far.
    """

    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    num_used: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TemiFit:
    """What a fit found.

    assignment: argmax of the best head's teacher over all images. best_head: the head with the lowest loss over the
    last epoch. head_losses: those losses, float64 [H]; comparable among heads, not among different C or gamma.
    head: the best teacher head's parameters by their names in `Heads` (float32, one leading dimension of 1), and
    `feature_mean` and `feature_scale` [D] where the features were standardized.
    """

    assignment: ClusterAssignment
    best_head: int
    head_losses: np.ndarray
    head: dict[str, np.ndarray]


def fit_temi(
    features: np.ndarray,
    neighbors: np.ndarray,
    num_clusters: int,
    config: TemiConfig,
    *,
    seed: int,
    device: str | torch.device = "cpu",
) -> Generator[TemiProgress, None, TemiFit]:
    """Train TEMI, yielding after each epoch and returning a TemiFit (as the value of StopIteration).

    features: real [N, D]. neighbors: integer [N, at least m] from `nearest_neighbors`, of which the first
    `config.num_neighbors` are used. num_clusters: C, in [2, N]. seed: a non-negative integer; weights depend on it
    alone, pairs on it, the epoch and the kind of device. device: holds features, neighbors and heads throughout.

    Raises ValueError for arguments that break these rules and for features that are not finite or all equal, and
    FloatingPointError, naming epoch and step, where the loss is not finite.
    """
    _check(features, neighbors, num_clusters, config.num_neighbors, seed)
    device = torch.device(device)
    rows, normalization = _normalized(features, config.feature_norm, device)
    partners = torch.from_numpy(neighbors[:, : config.num_neighbors].astype(np.int64)).to(device)
    training = TemiTraining(rows.shape[1], num_clusters, config, seed=seed, device=device)
    batch = min(config.batch_size, len(rows))
    steps = max(1, len(rows) // batch)
    for epoch in range(config.epochs):
        training.set_last_layer_trained(epoch >= config.freeze_last_layer_epochs)
        pairs = _pairs(partners, seed=seed, epoch=epoch)[:, : steps * batch].view(2, steps, batch)
        losses = torch.empty(steps, config.num_heads, device=device)
        for step in range(steps):
            rate = learning_rate(epoch * steps + step, steps_per_epoch=steps, batch=batch, config=config)
            losses[step] = training.step(rows[pairs[:, step].flatten()], rate)
        # One look at the losses for each epoch: a look at each step would make the device wait for the host.
        finite = losses.isfinite().all(dim=1).tolist()
        if not all(finite):
            raise FloatingPointError(f"the loss is not finite at epoch {epoch + 1}, step {finite.index(False) + 1}")
        head_losses = losses.double().mean(dim=0).cpu().numpy()
        best = int(head_losses.argmin())
        labels = _assign(training.teacher, rows, best)
        yield TemiProgress(
            epoch=epoch + 1,
            epochs=config.epochs,
            loss=float(head_losses.mean()),
            learning_rate=rate,
            num_used=len(np.unique(labels)),
        )
    state = training.teacher.state_dict()
    parameters = {name: tensor[best : best + 1].cpu().numpy().copy() for name, tensor in state.items()}
    return TemiFit(
        assignment=ClusterAssignment(
            labels=labels,
            num_clusters=num_clusters,
            method="temi",
            provenance={
                "config": config.model_dump(mode="json"),
                "seed": seed,
                "best_head": best,
                "loss": float(head_losses[best]),
            },
        ),
        best_head=best,
        head_losses=head_losses,
        head=parameters | normalization,
    )


def learning_rate(step: int, *, steps_per_epoch: int, batch: int, config: TemiConfig) -> float:
    """AdamW's rate at a step counted from 0: linear from 0 to the peak, reached at the last step of the warm-up, then
    a cosine towards the end value, which the step after the last one would reach. Both scale with `batch` / 256."""
    scale = batch / _BATCH_OF_LEARNING_RATE
    peak, end = config.learning_rate * scale, config.min_learning_rate * scale
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_epochs, config.epochs) * steps_per_epoch
    if step < warmup:
        return peak * step / max(1, warmup - 1)
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def updated_marginal(marginal: torch.Tensor, teacher: torch.Tensor, momentum: float) -> torch.Tensor:
    """The marginal p [G, C] after it has seen the teacher's probabilities [G, 2B, C] of both views."""
    return torch.lerp(teacher.mean(dim=1), marginal, momentum)


def pair_agreement(teacher: torch.Tensor) -> torch.Tensor:
    """How far each head's teacher puts a pair into one cluster, [G, B] in [0, 1]; its mean over all heads is w.

    teacher: probabilities [G, 2B, C], anchors first.
    """
    anchors, partners = teacher.chunk(2, dim=1)
    return (anchors * partners).sum(dim=-1)


def partner_target(log_teacher: torch.Tensor, marginal: torch.Tensor, gamma: float) -> torch.Tensor:
    """The teacher's part of the loss, gamma log T - log p, for log-probabilities [G, 2B, C] and marginal [G, C]."""
    # A cluster that has died decays towards 0 and must not become the logarithm of 0.
    log_marginal = marginal.clamp_min(torch.finfo(marginal.dtype).tiny).log()
    return torch.add(-log_marginal.unsqueeze(1), log_teacher, alpha=gamma)


def head_losses(
    student_logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, *, gamma: float, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_i of each head [G] and its gradient with respect to that head's logits [G, 2B, C].

    student_logits: [G, 2B, C], not yet divided by the temperature. target: `partner_target` in which row r belongs to
    the partner of the student's row r. weight: w [B].
    """
    log_student = torch.log_softmax(student_logits / temperature, dim=-1)
    joint = torch.add(target, log_student, alpha=gamma)
    highest = joint.amax(dim=-1, keepdim=True)
    joint.sub_(highest).exp_()
    total = joint.sum(dim=-1, keepdim=True)
    row_weight = torch.cat([weight, weight]) / (2 * len(weight))
    losses = -((total.log() + highest).squeeze(-1) @ row_weight)
    gradient = log_student.exp_().addcdiv_(joint, total, value=-1)
    return losses, gradient.mul_((row_weight * (gamma / temperature)).unsqueeze(-1))


class TemiTraining:
    """Student, teacher, marginal and optimizer of one fit."""

    def __init__(
        self, in_features: int, num_clusters: int, config: TemiConfig, *, seed: int, device: torch.device
    ) -> None:
        weights = torch.Generator().manual_seed(_stream(seed, 0))
        student = Heads(
            config.num_heads,
            in_features,
            num_clusters,
            hidden=config.hidden,
            bottleneck=config.bottleneck,
            generator=weights,
        )
        self.config = config
        self.student = student.to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.marginal = torch.full((config.num_heads, num_clusters), 1 / num_clusters, device=device)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.student.weights(), "weight_decay": config.weight_decay},
                {"params": self.student.biases(), "weight_decay": 0.0},
            ],
            fused=True,
        )
        for parameter in self.student.parameters():
            parameter.grad = torch.empty_like(parameter)
        group = config.head_group or (_CPU_HEAD_GROUP if device.type == "cpu" else config.num_heads)
        starts = range(0, config.num_heads, group)
        self.groups = [slice(start, min(start + group, config.num_heads)) for start in starts]

    def set_last_layer_trained(self, trained: bool) -> None:
        """A parameter without a gradient is left alone by the gradient's computation and by AdamW, decay included."""
        for parameter in self.student.last_layer():
            if not trained:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)

    @torch.no_grad()
    def step(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """One step on the rows x [2B, D], anchors first; the losses [H]."""
        config = self.config
        batch = len(x) // 2
        # The teacher sees the partners first, so that its row r answers the student's row r.
        swapped = torch.cat([x[batch:], x[:batch]])
        targets = x.new_empty(config.num_heads, len(x), self.marginal.shape[1])
        weight = x.new_zeros(batch)
        for heads in self.groups:
            logits = self.teacher(swapped, heads)
            log_teacher = torch.log_softmax(logits.div_(config.teacher_temperature), dim=-1)
            teacher = log_teacher.exp()
            marginal = updated_marginal(self.marginal[heads], teacher, config.marginal_momentum)
            self.marginal[heads] = marginal
            weight += pair_agreement(teacher).sum(dim=0)
            targets[heads] = partner_target(log_teacher, marginal, config.gamma)
        weight /= config.num_heads
        losses = []
        for heads in self.groups:
            done = self.student.run(x, heads)
            group_losses, grad_logits = head_losses(
                done.logits, targets[heads], weight, gamma=config.gamma, temperature=config.student_temperature
            )
            # The objective is the mean over all heads.
            self.student.backward(done, grad_logits.div_(config.num_heads), heads)
            losses.append(group_losses)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        torch._foreach_lerp_(
            list(self.teacher.parameters()), list(self.student.parameters()), 1 - config.teacher_momentum
        )
        return torch.cat(losses)


def _pairs(partners: torch.Tensor, *, seed: int, epoch: int) -> torch.Tensor:
    """Anchors and partners of an epoch, [2, N]: all images in a new order, each with one of its m neighbors."""
    num_images, num_neighbors = partners.shape
    generator = torch.Generator(partners.device).manual_seed(_stream(seed, 1, epoch))
    anchors = torch.randperm(num_images, generator=generator, device=partners.device)
    column = torch.randint(num_neighbors, (num_images,), generator=generator, device=partners.device)
    return torch.stack([anchors, partners[anchors, column]])


def _stream(seed: int, *key: int) -> int:
    """A seed of its own for each use, so that no two uses share their random numbers."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


@torch.no_grad()
def _assign(teacher: Heads, rows: torch.Tensor, head: int) -> np.ndarray:
    one = slice(head, head + 1)
    labels = [teacher(tile, one)[0].argmax(dim=-1) for tile in rows.split(_ASSIGNMENT_TILE)]
    return torch.cat(labels).to(torch.int32).cpu().numpy()


def _normalized(features: np.ndarray, norm: str, device: torch.device) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """The rows that the heads see, float32 [N, D], and what a new row must be shifted and divided by."""
    rows = torch.from_numpy(np.array(features, dtype=np.float32)).to(device)
    if norm == "l2":
        return torch.nn.functional.normalize(rows, dim=1), {}
    if norm == "none":
        return rows, {}
    deviation, mean = torch.std_mean(rows.double(), dim=0)
    # A dimension that is the same everywhere says nothing and becomes 0.
    scale = torch.where(deviation > 0, deviation, 1.0).float()
    mean = mean.float()
    return (rows - mean) / scale, {"feature_mean": mean.cpu().numpy(), "feature_scale": scale.cpu().numpy()}


def _check(features: np.ndarray, neighbors: np.ndarray, num_clusters: int, num_neighbors: int, seed: int) -> None:
    if features.ndim != 2:
        raise ValueError(f"features must have shape [N, D], got {features.shape}")
    num_images = len(features)
    if not 2 <= num_clusters <= num_images:
        raise ValueError(f"num_clusters must lie in [2, N] = [2, {num_images}], got {num_clusters}")
    if neighbors.ndim != 2 or len(neighbors) != num_images or neighbors.shape[1] < num_neighbors:
        raise ValueError(f"neighbors must have shape [{num_images}, at least {num_neighbors}], got {neighbors.shape}")
    if neighbors.min() < 0 or neighbors.max() >= num_images:
        raise ValueError(f"neighbors must lie in [0, {num_images}), got {neighbors.min()} to {neighbors.max()}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    finite = np.concatenate([np.isfinite(tile).all(axis=1) for tile in _tiles(features)])
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"features must be finite, got NaN or infinity in {len(bad)} of {num_images} rows,"
            f" first {bad[:_FIRST_ROWS_NAMED].tolist()}"
        )
    if all((tile == features[0]).all() for tile in _tiles(features)):
        raise ValueError(f"features must differ between images, got {num_images} equal rows, first {features[0][:5]}")


def _tiles(features: np.ndarray) -> Generator[np.ndarray, None, None]:
    for start in range(0, len(features), _ASSIGNMENT_TILE):
        yield features[start : start + _ASSIGNMENT_TILE]
