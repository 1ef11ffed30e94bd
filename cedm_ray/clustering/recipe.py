"""How TEMI is trained: its settings, the presets by name, and the learning rate of each step."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from cedm_ray.clustering.head_group import Precision
from cedm_ray.config import Config

_BATCH_OF_LEARNING_RATE = 256
# What a preset says otherwise than the defaults of TemiConfig, which are Table 8 of the paper read as its results were
# made. Table 8 gives one momentum, 0.996, and the text calls it the marginal's; the published assignments were made
# with 0.9 for the marginal and 0.996 for the teacher.
PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "paper_literal": {"marginal_momentum": 0.996}}


class TemiConfig(Config):
    """How TEMI is trained; the defaults are Table 8 of the paper, and where it is silent the TEMI authors' recipe.

    preset: "paper" or "paper_literal"; where the values come from that are not written beside it.
    num_heads: H. hidden, bottleneck: widths of the heads' two layers. num_neighbors: m, neighbors that partners are
    drawn from. batch_size: pairs of a step; N where there are fewer images. epochs: passes over the images.
    learning_rate, min_learning_rate: peak and end of the cosine, both for 256 pairs and multiplied by batch / 256.
    warmup_epochs: linear rise from 0, clipped to `epochs`. weight_decay: AdamW's, on all but biases.
    gamma: exponent of Eq. 1 in (0.5, 1]; 0.6 for the upper bound, 1 for the lower. student_temperature,
    teacher_temperature: of the two softmaxes. teacher_momentum, marginal_momentum: share of the old value that the
    teacher's weights and its marginal keep at each step, in [0, 1). freeze_last_layer_epochs: first epochs in which
    the last layer is not trained. feature_norm: "none" feeds the features as they are, "standardize" subtracts the
    mean and divides by the standard deviation of each dimension, "l2" scales each row to length 1.
    precision: of the heads' matrix products; "bfloat16" is for GPUs, and the loss is in float32 all the same.

    What follows changes speed and memory alone, results by rounding at the most. head_group: heads computed at once;
    None = on a CPU as many as stay in its cache, on a GPU all. memory_budget_gib: the most GiB that the work tensors
    of a step may take, which parameters, optimizer and features are not among; the head group shrinks to fit, then the
    teacher's logits are computed twice instead of kept, then the rows of the loss are taken in tiles; None = no limit.
    compile: whether torch.compile makes one program of a step of all heads, which takes a C++ compiler (CPU) or Triton
    (GPU) and some seconds at the start; None = on CUDA devices. A step that head_group or the budget cut into pieces is
    worked out piece by piece all the same.
    """

    preset: Literal["paper", "paper_literal"] = "paper"
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
    precision: Precision = "float32"
    head_group: int | None = Field(default=None, ge=1)
    memory_budget_gib: float | None = Field(default=None, gt=0)
    compile: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        """Written keys win over the preset's. An unknown preset is left to the field's own check."""
        if not isinstance(given, dict):
            return given
        preset = given.get("preset")
        return {**PRESETS.get(preset, {}), **given} if isinstance(preset, str) else given

    @model_validator(mode="after")
    def _rates_in_order(self) -> "TemiConfig":
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate must not exceed learning_rate {self.learning_rate}, got {self.min_learning_rate}"
            )
        return self


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
