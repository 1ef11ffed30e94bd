"""A step of all heads as one function of tensors, for a compiler that fuses what lies between the matrix products.

The arithmetic of `head_group.py`, `objective.py` and AdamW, which `training.py` works out in place on memory that stays
in a CPU's cache. On a GPU a pass over [H, R, C] costs more than what is computed in it; compiled, the loss with its
gradient takes three of them, and weights, moments and averages are read and written once.

Shapes: R rows (row 2b is an anchor, row 2b + 1 its partner), D feature width, W hidden width, K bottleneck width,
H heads, C clusters.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from cedm_ray.clustering.heads import NORM_EPS, Heads
from cedm_ray.clustering.objective import negative_log, updated_marginal
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.compiler import compiling, reason

Parameters = dict[str, torch.Tensor]

BACKEND = "inductor"
ANY_C = False
"""Whether one compiled step serves every C of a process, instead of one for each C: a search then waits for the
compiler once, and its kernels do not know how long their rows are. Off until a GPU has told what that costs
(`temi_gpu.py --any-c`)."""

_LAST_LAYER = ("prototypes", "gain")
_UNDECAYED = ("bias_1", "bias_2")
_BETAS, _EPS = (0.9, 0.999), 1e-8
_MULTIPLIED = ("weight_1", "weight_2")
# Shapes that are compiled before torch would give up: one for each C that a process fits.
_VARIANTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What a step changes, all in place.

    first, second: AdamW's moments. rounded_student, rounded_teacher: what the large weights are rounded to for the
    matrix products; empty where nothing is rounded. marginal: [H, C].
    """

    student: Parameters
    teacher: Parameters
    first: Parameters
    second: Parameters
    rounded_student: Parameters
    rounded_teacher: Parameters
    marginal: torch.Tensor


class FusedTraining:
    """As `TemiTraining`, for all heads at once; compiled, or where that fails, the same without.

    note: why it computes without a compiler, None where it does not.
    """

    def __init__(self, student: Heads, config: TemiConfig) -> None:
        self.config = config
        self.student, self.teacher = student, copy.deepcopy(student)
        heads, num_clusters = student.gain.shape
        self.marginal = torch.full((heads, num_clusters), 1 / num_clusters, device=student.gain.device)
        weights = _tensors(student)
        rounded = {name: weights[name].bfloat16() for name in _MULTIPLIED if config.precision == "bfloat16"}
        self._state = _State(
            student=weights,
            teacher=_tensors(self.teacher),
            first={name: torch.zeros_like(weight) for name, weight in weights.items()},
            second={name: torch.zeros_like(weight) for name, weight in weights.items()},
            rounded_student=rounded,
            rounded_teacher={name: weight.clone() for name, weight in rounded.items()},
            marginal=self.marginal,
        )
        # Of the last layer and of the others: whether it is trained, and AdamW's steps so far.
        self._trained, self._counts = [True, True], [0, 0]
        if ANY_C:
            self._leave_c_open()
        known = None if ANY_C else False
        self._step: Callable[..., torch.Tensor] = torch.compile(fused_step, backend=BACKEND, dynamic=known)
        self._tried = False
        self.note: str | None = None

    def set_last_layer_trained(self, trained: bool) -> None:
        """Whether steps train the last layer. Only a layer that was never trained can be left alone, decay included."""
        self._trained[0] = trained

    @torch.no_grad()
    def step(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """One step on the rows x [2B, D], each partner next to its anchor, at the learning rate `rate`; the losses [H].

        Raises torch.OutOfMemoryError, after which the fit is to be begun anew.
        """
        inputs = self._state, x, self._factors(rate).to(x.device, non_blocking=True), self.config
        return self._step(*inputs) if self._tried else self._first_step(inputs)

    def _leave_c_open(self) -> None:
        """Tell the compiler of every tensor that has one which of its dimensions is C."""
        state = self._state
        torch._dynamo.mark_dynamic(state.marginal, 1)
        for weights in (state.student, state.teacher, state.first, state.second):
            for name in _LAST_LAYER:
                torch._dynamo.mark_dynamic(weights[name], 1)

    def _factors(self, rate: float) -> torch.Tensor:
        """What AdamW's step of this rate multiplies by, `fused_step`'s [2, 4], on the host: numbers that a device would
        have to be asked for, or would work out for every weight."""
        factors = torch.empty(2, 4, pin_memory=self.marginal.device.type == "cuda")
        for part, trained in enumerate(self._trained):
            self._counts[part] += trained
            count = max(1, self._counts[part])
            first, second = (1 - beta**count for beta in _BETAS)
            decay = rate * self.config.weight_decay if trained else 0.0
            factors[part] = torch.tensor((float(trained), rate / first, second**-0.5, 1 - decay), dtype=torch.float64)
        return factors

    def _first_step(self, inputs: tuple[Any, ...]) -> torch.Tensor:
        self._tried = True
        try:
            with compiling(_VARIANTS):
                return self._step(*inputs)
        except torch.OutOfMemoryError:
            # The step may have run in part, and without a compiler it would take more memory still.
            raise
        except Exception as error:
            # Whatever a compiler may raise, it raises before anything has run.
            self.note = f"TEMI goes on without torch.compile, more slowly, since that failed: {reason(error)}"
            torch._dynamo.reset()
            self._step = fused_step
            return fused_step(*inputs)


def _tensors(heads: Heads) -> Parameters:
    return {name: parameter.detach() for name, parameter in heads.named_parameters()}


def fused_step(state: _State, x: torch.Tensor, factors: torch.Tensor, config: TemiConfig) -> torch.Tensor:
    """One step on rows x [R, D]; the losses [H].

    factors: [2, 4] of the last layer and of the others: 1, or 0 for what is not trained and never was; the learning
    rate over AdamW's first correction; one over the root of its second; what weights are multiplied by as decay.
    """
    student, teacher = state.student | state.rounded_student, state.teacher | state.rounded_teacher
    losses, marginal, gradients = losses_and_gradients(student, teacher, state.marginal, x, config)
    state.marginal.copy_(marginal)
    for name, gradient in gradients.items():
        trained, rate, root, decay = factors[0 if name in _LAST_LAYER else 1].unbind()
        weight, first, second = state.student[name], state.first[name], state.second[name]
        gradient = gradient * trained
        first.copy_(torch.lerp(gradient, first, _BETAS[0]))
        second.copy_(torch.lerp(gradient.square(), second, _BETAS[1]))
        decayed = weight if name in _UNDECAYED else weight * decay
        # A moment that is 0 moves nothing, so that what is not trained stays where it is.
        weight.copy_(decayed - rate * first / (second.sqrt() * root + _EPS))
        average = state.teacher[name]
        average.copy_(torch.lerp(weight, average, config.teacher_momentum))
        if name in state.rounded_student:
            state.rounded_student[name].copy_(weight)
            state.rounded_teacher[name].copy_(average)
    return losses


def losses_and_gradients(
    student: Parameters, teacher: Parameters, marginal: torch.Tensor, x: torch.Tensor, config: TemiConfig
) -> tuple[torch.Tensor, torch.Tensor, Parameters]:
    """(losses [H], the marginal after the step [H, C], gradients by parameter) of rows x [R, D].

    student, teacher: parameters by their names in `Heads`. Source: `objective.py`.
    """
    rows, heads, gamma = len(x), len(marginal), config.gamma
    half = torch.bfloat16 if config.precision == "bfloat16" else None
    inputs = x if half is None else x.to(half)
    # The teacher sees the two views of a pair exchanged, so that its row r answers the student's row r.
    exchanged = inputs.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    *_, unit, _ = _embed(teacher, exchanged, half)
    weight, _, _ = _last_layer(teacher, config.teacher_temperature)
    t = _product(unit, weight.mT, half)
    t = t - t.amax(dim=-1, keepdim=True)
    log_total_t = t.exp().sum(dim=-1).log()
    probabilities = (t - log_total_t.unsqueeze(-1)).exp()
    marginal = updated_marginal(marginal, probabilities.sum(dim=1), rows, config.marginal_momentum)
    agreement = (probabilities[:, 0::2] * probabilities[:, 1::2]).sum(dim=-1).sum(dim=0)
    row_weight = (agreement / (heads * rows)).repeat_interleave(2)

    before_gelu, hidden, unit, length = _embed(student, inputs, half)
    weight, scale, prototype_length = _last_layer(student, config.student_temperature)
    s = _product(unit, weight.mT, half)
    s = s - s.amax(dim=-1, keepdim=True)
    exponent = gamma * (s + t) + negative_log(marginal).unsqueeze(1)
    highest = exponent.amax(dim=-1, keepdim=True)
    log_total_joint = (exponent - highest).exp().sum(dim=-1, keepdim=True).log()
    log_total_s = s.exp().sum(dim=-1, keepdim=True).log()
    log_joint = (log_total_joint + highest - gamma * log_total_s).squeeze(-1) - gamma * log_total_t
    losses = -(log_joint * row_weight).sum(dim=-1)
    # Of the objective, which is the mean over all heads.
    gradient_weight = (row_weight * (gamma / heads)).unsqueeze(-1)
    grad_logits = (s - log_total_s).exp() - (exponent - highest - log_total_joint).exp()

    gradients = {}
    grad_unit = _product(grad_logits, weight, half)
    gradient = _product(grad_logits.mT, unit * gradient_weight, half)
    along = (gradient * student["prototypes"]).sum(dim=-1, keepdim=True) / prototype_length
    gradients["gain"] = along.squeeze(-1) / config.student_temperature
    gradients["prototypes"] = (gradient - student["prototypes"] * (along / prototype_length)) * scale
    # Of a vector that is scaled to length 1, only what is orthogonal to it has a gradient.
    grad_rows = (grad_unit - unit * (grad_unit * unit).sum(dim=-1, keepdim=True)) * (gradient_weight / length)
    gradients["weight_2"] = _product(hidden.mT, grad_rows, half)
    gradients["bias_2"] = grad_rows.sum(dim=1)
    grad_hidden = torch.ops.aten.gelu_backward(_product(grad_rows, student["weight_2"].mT, half), before_gelu)
    gradients["weight_1"] = _product(inputs.T.expand(heads, -1, -1), grad_hidden, half)
    gradients["bias_1"] = grad_hidden.sum(dim=1)
    return losses, marginal, gradients


def _embed(
    heads: Parameters, x: torch.Tensor, half: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Before GELU and after it [H, R, W], the bottleneck rows at length 1 [H, R, K] and their lengths [H, R, 1]."""
    before_gelu = _product(x.expand(len(heads["gain"]), -1, -1), heads["weight_1"], half)
    before_gelu = before_gelu + heads["bias_1"].unsqueeze(1)
    hidden = F.gelu(before_gelu)
    bottleneck = _product(hidden, heads["weight_2"], half) + heads["bias_2"].unsqueeze(1)
    length = torch.linalg.vector_norm(bottleneck, dim=-1, keepdim=True).clamp_min(NORM_EPS)
    return before_gelu, hidden, bottleneck / length, length


def _last_layer(heads: Parameters, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Effective weights [H, C, K], gain / (|prototype| temperature) and |prototype|, both [H, C, 1]."""
    length = torch.linalg.vector_norm(heads["prototypes"], dim=-1, keepdim=True)
    scale = heads["gain"].unsqueeze(-1) / length / temperature
    return heads["prototypes"] * scale, scale, length


def _product(a: torch.Tensor, b: torch.Tensor, half: torch.dtype | None) -> torch.Tensor:
    """a @ b of float tensors; `half` is what factors and result are rounded to, None = not at all."""
    return torch.bmm(a, b) if half is None else torch.bmm(a.to(half), b.to(half)).float()
