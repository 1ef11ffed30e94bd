"""One training step of TEMI: all heads' teachers first, because the pair weight couples the heads, then the students.

Shapes: B pairs of a step, R = 2B rows (row 2b is an anchor, row 2b + 1 its partner), D feature width, H heads,
G heads of a group, T rows of a tile, C clusters.
"""

import copy

import numpy as np
import torch

from cedm_ray.clustering.fused import FusedTraining
from cedm_ray.clustering.head_group import GroupBuffers, HeadGroup
from cedm_ray.clustering.heads import Heads
from cedm_ray.clustering.objective import negative_log, student_tile, teacher_tile, updated_marginal
from cedm_ray.clustering.plan import WorkPlan, plan_work
from cedm_ray.clustering.recipe import TemiConfig


def new_training(
    in_features: int, num_clusters: int, config: TemiConfig, *, batch: int, seed: int, device: str | torch.device
) -> "TemiTraining | FusedTraining":
    """A fit that has not begun, for steps of `batch` pairs, as `plan_work` says for the device."""
    device = torch.device(device)
    plan = plan_work(batch, in_features, num_clusters, config, device_type=device.type)
    student = Heads(
        config.num_heads,
        in_features,
        num_clusters,
        hidden=config.hidden,
        bottleneck=config.bottleneck,
        generator=torch.Generator().manual_seed(random_stream(seed, 0)),
    )
    student = student.to(device).requires_grad_(False)
    return FusedTraining(student, config) if plan.fused else TemiTraining(student, config, plan, batch=batch)


class TemiTraining:
    """Student, teacher, marginal and optimizers of one fit, for steps of `batch` pairs."""

    note: str | None = None

    def __init__(self, student: Heads, config: TemiConfig, plan: WorkPlan, *, batch: int) -> None:
        num_clusters = student.gain.shape[1]
        self.config, self.plan = config, plan
        self.student = student
        self.teacher = copy.deepcopy(student)
        self.marginal = torch.full((config.num_heads, num_clusters), 1 / num_clusters, device=student.gain.device)
        rows = 2 * batch
        self._tiles = [slice(start, min(start + plan.tile_rows, rows)) for start in range(0, rows, plan.tile_rows)]
        buffers = GroupBuffers(self.student, plan.head_group, rows, plan.tile_rows, tiles=2 if plan.keep_logits else 3)
        self._buffers = buffers
        # What is kept of the teacher until its head's student comes: its logits, or the rows they are made of.
        kept = num_clusters if plan.keep_logits else config.bottleneck
        self._kept = self.marginal.new_empty(config.num_heads, rows, kept)
        self._teacher_weight = None if plan.keep_logits else torch.empty_like(buffers.weight)
        self._groups = [
            self._group(slice(start, min(start + plan.head_group, config.num_heads)))
            for start in range(0, config.num_heads, plan.head_group)
        ]
        self.set_last_layer_trained(True)

    def _group(self, heads: slice) -> tuple[slice, HeadGroup, HeadGroup, torch.optim.Optimizer]:
        config = self.config
        teacher = HeadGroup(
            self.teacher,
            heads,
            self._buffers,
            temperature=config.teacher_temperature,
            weight=self._teacher_weight,
            precision=config.precision,
        )
        student = HeadGroup(
            self.student, heads, self._buffers, temperature=config.student_temperature, precision=config.precision
        )
        optimizer = torch.optim.AdamW(
            [
                {"params": student.decayed(), "weight_decay": config.weight_decay},
                {"params": student.biases(), "weight_decay": 0.0},
            ],
            fused=True,
        )
        return heads, teacher, student, optimizer

    def set_last_layer_trained(self, trained: bool) -> None:
        """A parameter without a gradient is left alone by the gradient's computation and by AdamW, decay included."""
        for _, _, student, _ in self._groups:
            student.attach_gradients(last_layer=trained)

    @torch.no_grad()
    def step(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """One step on the rows x [2B, D], each partner next to its anchor; the losses [H]."""
        # The teacher sees the two views of a pair exchanged, so that its row r answers the student's row r.
        exchanged = x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        log_total = x.new_empty(self.config.num_heads, len(x))
        agreement = x.new_zeros(len(x) // 2)
        for heads, teacher, _, _ in self._groups:
            self._see(teacher, heads, exchanged, log_total, agreement)
        # w of both rows of each pair, over the number of rows that a loss is averaged over.
        row_weight = agreement.div_(self.config.num_heads * len(x)).repeat_interleave(2)
        losses = [self._learn(group, x, row_weight, log_total, rate) for group in self._groups]
        return torch.cat(losses)

    def _see(
        self, teacher: HeadGroup, heads: slice, x: torch.Tensor, log_total: torch.Tensor, agreement: torch.Tensor
    ) -> None:
        """Run a group's teacher: its logits or bottleneck rows, log Z and marginal, and its part of the agreement."""
        teacher.embed(x)
        teacher.prepare_last_layer()
        kept, scratch = self._kept[heads], self._buffers.tiles[-1][: teacher.size]
        if not self.plan.keep_logits:
            kept.copy_(teacher.unit)
        mass = torch.zeros_like(self.marginal[heads])
        for tile in self._tiles:
            logits = self._teacher_logits(teacher, kept, teacher.unit, tile)
            log_total[heads, tile], tile_mass, agreed = teacher_tile(logits, scratch[:, : logits.shape[1]])
            mass += tile_mass
            agreement[tile.start // 2 : tile.stop // 2] += agreed.sum(dim=0)
        self.marginal[heads] = updated_marginal(self.marginal[heads], mass, len(x), self.config.marginal_momentum)

    def _teacher_logits(self, teacher: HeadGroup, kept: torch.Tensor, unit: torch.Tensor, tile: slice) -> torch.Tensor:
        out = (
            kept[:, tile] if self.plan.keep_logits else self._buffers.tiles[0][: teacher.size, : tile.stop - tile.start]
        )
        return teacher.logits(unit[:, tile], out)

    def _learn(
        self,
        group: tuple[slice, HeadGroup, HeadGroup, torch.optim.Optimizer],
        x: torch.Tensor,
        row_weight: torch.Tensor,
        log_total: torch.Tensor,
        rate: float,
    ) -> torch.Tensor:
        """Run, improve and average into its teacher a group's student; its losses [G]."""
        config = self.config
        heads, teacher, student, optimizer = group
        kept = self._kept[heads]
        if not self.plan.keep_logits:
            teacher.prepare_last_layer()
        student.embed(x)
        student.prepare_last_layer()
        # The objective is the mean over all heads.
        gradient_weight = row_weight * (config.gamma / config.num_heads)
        student.weigh_rows(gradient_weight)
        bias = negative_log(self.marginal[heads])
        *_, logits_buffer, scratch = (buffer[: student.size] for buffer in self._buffers.tiles)
        losses = x.new_zeros(student.size)
        for tile in self._tiles:
            rows = tile.stop - tile.start
            if self.plan.keep_logits:
                target = kept[:, tile]
            else:
                target = self._teacher_logits(teacher, kept, kept, tile)
                target.sub_(target.amax(dim=-1, keepdim=True))
            logits = student.logits(student.unit[:, tile], logits_buffer[:, :rows])
            log_joint = student_tile(logits, target, bias, scratch[:, :rows], config.gamma)
            student.backward_logits(logits, tile)
            losses -= (log_joint - config.gamma * log_total[heads, tile]) @ row_weight[tile]
        student.backward(x, gradient_weight)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        optimizer.step()
        torch._foreach_lerp_(list(teacher.values.values()), list(student.values.values()), 1 - config.teacher_momentum)
        return losses


def random_stream(seed: int, *key: int) -> int:
    """A seed of its own for each use, so that no two uses share their random numbers."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])
