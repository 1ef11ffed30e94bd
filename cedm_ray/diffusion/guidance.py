"""Guidance: a denoiser that is led away from what a worse one says (Ho & Salimans 2022; Karras et al. 2024).

    D(x; sigma, c) = D_1(x; sigma, c) + w (D_1(x; sigma, c) - D_0(x; sigma))

D_1 is the model. In classifier-free guidance D_0 is the same model under the null label, so that D is
(1 + w) D_1(c) - w D_1(null). In autoguidance D_0 is a smaller or an earlier model, and 1 + w is what Karras et al.
call w. Both are modules like `Denoiser`, and w = 0 is no guidance.

Shapes: B images at once, S image side, D width of a feature condition.
"""

import torch
from torch import Tensor, nn

from cedm_ray.diffusion.edm import Denoiser


def guided(denoiser: nn.Module, weight: float, guide: nn.Module | None = None) -> nn.Module:
    """The denoiser under guidance of weight w >= 0: classifier-free, or away from `guide` where one is given.

    An unconditional denoiser has one label, so that classifier-free guidance leaves it as it is. Raises ValueError for
    a guide without a weight, and as the two classes do.
    """
    if weight < 0:
        raise ValueError(f"weight must be at least 0, got {weight}")
    if guide is not None:
        if weight == 0:
            raise ValueError("weight must be above 0 where a guide is given, got 0")
        return Autoguidance(denoiser, guide, weight)
    if weight == 0 or not takes_conditions(denoiser):
        return denoiser
    return ClassifierFreeGuidance(denoiser, weight)


def takes_conditions(denoiser: nn.Module) -> bool:
    """Whether a denoiser is conditional: on classes, or on features."""
    return denoiser.num_classes > 0 or feature_dim(denoiser) > 0


def feature_dim(denoiser: nn.Module) -> int:
    """D of the feature vectors that a denoiser is conditioned on, 0 where it takes none."""
    return getattr(denoiser, "feature_dim", 0)


class _Guided(nn.Module):
    """What both kinds share: they are conditioned as the model is, and are only ever evaluated."""

    def __init__(self, denoiser: nn.Module, weight: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.weight = weight
        self.num_classes = denoiser.num_classes
        self.feature_dim = feature_dim(denoiser)
        self.training = denoiser.training

    def _lead(self, strong: Tensor, weak: Tensor) -> Tensor:
        # From the difference, which is exact where the two agree, as they nearly do at high noise.
        return strong + self.weight * (strong - weak)


class ClassifierFreeGuidance(_Guided):
    """(1 + w) D(c) - w D(null), both in one forward pass of twice the batch.

    Raises ValueError for a network that never saw the null label in training (label_dropout 0): what it says under
    that label means nothing.
    """

    def __init__(self, denoiser: Denoiser, weight: float) -> None:
        super().__init__(denoiser, weight)
        if not takes_conditions(denoiser):
            raise ValueError("denoiser must be conditional for classifier-free guidance, got an unconditional one")
        if not denoiser.net.config.label_dropout:
            rule = "label_dropout must have been above 0 in training for classifier-free guidance"
            raise ValueError(f"{rule}, got {denoiser.net.config.label_dropout:g}")

    def forward(self, x: Tensor, sigma: Tensor, conditions: Tensor) -> Tensor:
        """x [B, 3, S, S], sigma [B], conditions int64 [B] or float [B, D]. Returns [B, 3, S, S]."""
        null = torch.zeros_like(conditions) if conditions.is_floating_point() else torch.full_like(conditions, -1)
        both = self.denoiser(x.repeat(2, 1, 1, 1), sigma.repeat(2), torch.cat((conditions, null)))
        return self._lead(*both.chunk(2))


class Autoguidance(_Guided):
    """D_1(c) + w (D_1(c) - D_0(c)), with D_0 a worse model under the same condition, or an unconditional one.

    Raises ValueError where the guide takes other conditions than the model.
    """

    def __init__(self, denoiser: nn.Module, guide: nn.Module, weight: float) -> None:
        super().__init__(denoiser, weight)
        if guide.training:
            raise ValueError("guide must be in eval mode, got one in training mode")
        theirs, ours = (guide.num_classes, feature_dim(guide)), (self.num_classes, self.feature_dim)
        if theirs not in ((0, 0), ours):
            rule = f"guide must be unconditional or take the model's {ours[0]} classes and features of width {ours[1]}"
            raise ValueError(f"{rule}, got {theirs[0]} classes and width {theirs[1]}")
        self.guide = guide
        self.guide_is_conditional = theirs != (0, 0)

    def forward(self, x: Tensor, sigma: Tensor, conditions: Tensor | None = None) -> Tensor:
        """x [B, 3, S, S], sigma [B], conditions int64 [B], float [B, D] or None. Returns [B, 3, S, S]."""
        weak = self.guide(x, sigma, conditions if self.guide_is_conditional else None)
        return self._lead(self.denoiser(x, sigma, conditions), weak)
