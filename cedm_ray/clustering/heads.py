"""H independent clustering heads D -> hidden -> bottleneck -> C as one batched module.

Shapes: B rows, D feature width, W hidden width, K bottleneck width, H heads, G heads of a group, C clusters.
Each head is Linear(D, W), exact GELU, Linear(W, K), scaling to length 1, and a weight-normalized linear layer without
bias, so that its logits are gain_c * cos(z, prototype_c) (Adaloglou et al., TEMI; section 3.2 of the paper).

All parameters carry the heads in their first dimension, so a group of heads is a slice and costs a handful of batched
products. `head_group.py` trains them.
"""

import torch
from torch import nn

ALL_HEADS = slice(None)
# Shortest length that a bottleneck row is divided by, as in torch.nn.functional.normalize.
NORM_EPS = 1e-12


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

    def forward(self, x: torch.Tensor, heads: slice = ALL_HEADS) -> torch.Tensor:
        """Logits [G, B, C] of rows x [B, D] under the heads of a slice, not yet divided by a temperature."""
        weight_1, prototypes = self.weight_1[heads], self.prototypes[heads]
        rows = x.expand(weight_1.shape[0], *x.shape)
        hidden = nn.functional.gelu(torch.baddbmm(self.bias_1[heads].unsqueeze(1), rows, weight_1))
        bottleneck = torch.baddbmm(self.bias_2[heads].unsqueeze(1), hidden, self.weight_2[heads])
        unit = nn.functional.normalize(bottleneck, dim=-1, eps=NORM_EPS)
        length = torch.linalg.vector_norm(prototypes, dim=-1, keepdim=True)
        return torch.bmm(unit, (prototypes * (self.gain[heads].unsqueeze(-1) / length)).mT)
