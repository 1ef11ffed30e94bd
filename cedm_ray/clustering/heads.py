"""H independent clustering heads as one batched module, with their gradient in closed form.

Shapes: B rows, D feature width, W hidden width, K bottleneck width, H heads, G heads of a group, C clusters.
Each head is Linear(D, W), exact GELU, Linear(W, K), scaling to length 1, and a weight-normalized linear layer without
bias, so that its logits are gain_c * cos(z, prototype_c) (Adaloglou et al., TEMI; section 3.2 of the paper).

All parameters carry the heads in their first dimension, so a group of heads is a slice and costs a handful of batched
products. Which group size is fast depends on the cache (CPU) or the number of launches (GPU); results do not.
"""

from typing import NamedTuple

import torch
from torch import nn

ALL_HEADS = slice(None)
_NORM_EPS = 1e-12


class HeadPass(NamedTuple):
    """One forward pass of a group of heads, with what its gradient needs.

    x [B, D], before_gelu [G, B, W], hidden [G, B, W], length [G, B, 1] of the bottleneck rows before their scaling,
    unit [G, B, K] the scaled rows, direction [G, C, K] the prototypes at length 1, scale [G, C, 1] gain over the
    prototypes' length, logits [G, B, C].
    """

    x: torch.Tensor
    before_gelu: torch.Tensor
    hidden: torch.Tensor
    length: torch.Tensor
    unit: torch.Tensor
    direction: torch.Tensor
    scale: torch.Tensor
    logits: torch.Tensor


class Heads(nn.Module):
    """H clustering heads D -> hidden -> bottleneck -> C.

    generator: a CPU generator that the initial weights are drawn from, head by head: head h is the same however many
    heads follow it, on any device. Weights are truncated normals of standard deviation 0.02, biases 0, prototypes
    uniform in +-1/sqrt(bottleneck), gains 1.
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        num_clusters: int,
        *,
        hidden: int,
        bottleneck: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        for name, size in (
            ("num_heads", num_heads),
            ("in_features", in_features),
            ("num_clusters", num_clusters),
            ("hidden", hidden),
            ("bottleneck", bottleneck),
        ):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.num_heads = num_heads
        self.weight_1 = nn.Parameter(torch.empty(num_heads, in_features, hidden))
        self.bias_1 = nn.Parameter(torch.zeros(num_heads, hidden))
        self.weight_2 = nn.Parameter(torch.empty(num_heads, hidden, bottleneck))
        self.bias_2 = nn.Parameter(torch.zeros(num_heads, bottleneck))
        self.prototypes = nn.Parameter(torch.empty(num_heads, num_clusters, bottleneck))
        self.gain = nn.Parameter(torch.ones(num_heads, num_clusters))
        with torch.no_grad():
            for head in range(num_heads):
                nn.init.trunc_normal_(self.weight_1[head], std=0.02, generator=generator)
                nn.init.trunc_normal_(self.weight_2[head], std=0.02, generator=generator)
                self.prototypes[head].uniform_(-(bottleneck**-0.5), bottleneck**-0.5, generator=generator)

    def biases(self) -> list[nn.Parameter]:
        """The parameters that take no weight decay."""
        return [self.bias_1, self.bias_2]

    def weights(self) -> list[nn.Parameter]:
        """The parameters that take weight decay; the gains are among them."""
        return [self.weight_1, self.weight_2, self.prototypes, self.gain]

    def last_layer(self) -> list[nn.Parameter]:
        """The parameters of the weight-normalized layer."""
        return [self.prototypes, self.gain]

    def forward(self, x: torch.Tensor, heads: slice = ALL_HEADS) -> torch.Tensor:
        """Logits [G, B, C] of rows x [B, D] under the heads of a slice, not yet divided by a temperature."""
        return self.run(x, heads).logits

    def run(self, x: torch.Tensor, heads: slice = ALL_HEADS) -> HeadPass:
        """The forward pass with everything that `backward` needs."""
        weight_1 = self.weight_1[heads]
        rows = x.expand(weight_1.shape[0], *x.shape)
        before_gelu = torch.baddbmm(self.bias_1[heads].unsqueeze(1), rows, weight_1)
        hidden = nn.functional.gelu(before_gelu)
        bottleneck = torch.baddbmm(self.bias_2[heads].unsqueeze(1), hidden, self.weight_2[heads])
        length = torch.linalg.vector_norm(bottleneck, dim=-1, keepdim=True).clamp_min(_NORM_EPS)
        unit = bottleneck / length
        prototypes = self.prototypes[heads]
        prototype_length = torch.linalg.vector_norm(prototypes, dim=-1, keepdim=True)
        direction = prototypes / prototype_length
        gain = self.gain[heads].unsqueeze(-1)
        logits = torch.bmm(unit, (direction * gain).mT)
        return HeadPass(x, before_gelu, hidden, length, unit, direction, gain / prototype_length, logits)

    @torch.no_grad()
    def backward(self, done: HeadPass, grad_logits: torch.Tensor, heads: slice = ALL_HEADS) -> None:
        """Write the gradient of a group's parameters into their `.grad`, given that of the logits [G, B, C].

        The `.grad` of every parameter must exist (`empty_like` will do, each entry is overwritten), except that the
        last layer is left out where its gradients are None. Writing into slices of one tensor is why this is not left
        to autograd, which would build and add a tensor of all heads for each group.
        """
        group = done.unit.shape[0]
        gain = self.gain[heads].unsqueeze(-1)
        if self.prototypes.grad is not None:
            grad_weight = torch.bmm(grad_logits.mT, done.unit)
            grad_gain = (grad_weight * done.direction).sum(dim=-1, keepdim=True)
            self.gain.grad[heads] = grad_gain.squeeze(-1)
            # A prototype's own length is divided out again, so only what is orthogonal to it remains.
            grad_weight.addcmul_(done.direction, grad_gain, value=-1)
            torch.mul(grad_weight, done.scale, out=self.prototypes.grad[heads])
        grad_unit = torch.bmm(grad_logits, done.direction * gain)
        along = (grad_unit * done.unit).sum(dim=-1, keepdim=True)
        grad_bottleneck = grad_unit.addcmul_(done.unit, along, value=-1).div_(done.length)
        torch.bmm(done.hidden.mT, grad_bottleneck, out=self.weight_2.grad[heads])
        torch.sum(grad_bottleneck, dim=1, out=self.bias_2.grad[heads])
        grad_hidden = torch.bmm(grad_bottleneck, self.weight_2[heads].mT)
        grad_before = torch.ops.aten.gelu_backward(grad_hidden, done.before_gelu)
        torch.bmm(done.x.T.expand(group, *done.x.T.shape), grad_before, out=self.weight_1.grad[heads])
        torch.sum(grad_before, dim=1, out=self.bias_1.grad[heads])
