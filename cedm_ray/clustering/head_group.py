"""A group of heads in training: its passes forward and backward in closed form, in memory that is taken once.

Shapes: R rows, D feature width, W hidden width, K bottleneck width, G heads of a group, C clusters, T rows of a tile.

Why not autograd: on a CPU a fresh [R, C] tensor costs more in page faults than the arithmetic on it, and the gradient
of all heads at once is as large as the heads. Here the buffers of one group serve all groups, and a group's gradient is
used up (by its optimizer) before the next group's is written over it.
"""

from typing import Literal

import torch
from torch import nn

from cedm_ray.clustering.heads import NORM_EPS, Heads
from cedm_ray.products import batched_product

Precision = Literal["float32", "bfloat16"]
_LAST_LAYER = ("prototypes", "gain")
_BIASES = ("bias_1", "bias_2")


class GroupBuffers:
    """The work tensors of up to `num_heads` heads on `rows` rows, and the gradients of their parameters.

    Two [G, R, W]: before and after GELU; the second then takes the gradient of the first. Three [G, R, K]: the
    bottleneck rows at length 1, their gradient, and the rows times their weight in the loss. One [G, C, K]: the
    effective last layer. `tiles` tensors [G, T, C] for the loss.
    """

    def __init__(self, heads: Heads, num_heads: int, rows: int, tile_rows: int, tiles: int) -> None:
        hidden, bottleneck = heads.weight_2.shape[1:]
        num_clusters = heads.prototypes.shape[1]

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(num_heads, *shape, dtype=heads.gain.dtype, device=heads.gain.device)

        self.before_gelu, self.hidden = empty(rows, hidden), empty(rows, hidden)
        self.unit, self.grad_unit, self.weighted = (empty(rows, bottleneck) for _ in range(3))
        self.length = empty(rows, 1)
        self.weight = empty(num_clusters, bottleneck)
        self.scale, self.prototype_length = empty(num_clusters, 1), empty(num_clusters, 1)
        self.tiles = [empty(tile_rows, num_clusters) for _ in range(tiles)]
        self.gradients = {name: empty(*p.shape[1:]) for name, p in heads.named_parameters()}


class HeadGroup:
    """The heads `part` of `heads`, as views of their parameters: what is changed here is changed there.

    temperature: the logits are divided by it, which costs nothing because it is divided out of the last layer's
    weights. weight: memory for those, [G, C, K]; None = that of the buffers. precision: "bfloat16" rounds the factors
    and the results of the matrix products to it; everything else, the sums inside a product included, stays in the
    parameters' own precision.
    """

    def __init__(
        self,
        heads: Heads,
        part: slice,
        buffers: GroupBuffers,
        *,
        temperature: float,
        weight: torch.Tensor | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.values = {name: nn.Parameter(p.detach()[part]) for name, p in heads.named_parameters()}
        self.size = len(self.values["gain"])
        self.temperature = temperature
        self.precision = precision
        size = self.size
        self.before_gelu, self.hidden = buffers.before_gelu[:size], buffers.hidden[:size]
        self.unit, self.grad_unit, self.weighted = (
            buffers.unit[:size],
            buffers.grad_unit[:size],
            buffers.weighted[:size],
        )
        self.length, self.weight = buffers.length[:size], (buffers.weight if weight is None else weight)[:size]
        self.scale, self.prototype_length = buffers.scale[:size], buffers.prototype_length[:size]
        self._gradients = {name: gradient[:size] for name, gradient in buffers.gradients.items()}

    def decayed(self) -> list[nn.Parameter]:
        """The parameters that take weight decay; the gains are among them."""
        return [value for name, value in self.values.items() if name not in _BIASES]

    def biases(self) -> list[nn.Parameter]:
        """The parameters that take none."""
        return [self.values[name] for name in _BIASES]

    def attach_gradients(self, last_layer: bool) -> None:
        """Let `backward` write and an optimizer find the gradients, those of the last layer only where asked for."""
        for name, value in self.values.items():
            value.grad = self._gradients[name] if last_layer or name not in _LAST_LAYER else None

    @torch.no_grad()
    def embed(self, x: torch.Tensor) -> None:
        """Bring rows x [R, D] to the bottleneck: writes `unit`, and what `backward` needs."""
        value = self.values
        rows = x.expand(self.size, *x.shape)
        self._product(rows, value["weight_1"], self.before_gelu, bias=value["bias_1"])
        nn.functional.gelu(self.before_gelu, out=self.hidden)
        self._product(self.hidden, value["weight_2"], self.unit, bias=value["bias_2"])
        torch.linalg.vector_norm(self.unit, dim=-1, keepdim=True, out=self.length)
        self.unit.div_(self.length.clamp_min_(NORM_EPS))

    @torch.no_grad()
    def prepare_last_layer(self) -> None:
        """Write `weight`, the last layer's effective weights gain * prototype / (|prototype| * temperature)."""
        prototypes, gain = self.values["prototypes"], self.values["gain"]
        torch.linalg.vector_norm(prototypes, dim=-1, keepdim=True, out=self.prototype_length)
        torch.div(gain.unsqueeze(-1), self.prototype_length, out=self.scale).div_(self.temperature)
        torch.mul(prototypes, self.scale, out=self.weight)

    @torch.no_grad()
    def logits(self, unit: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the logits [G, T, C] of bottleneck rows [G, T, K], divided by the temperature."""
        return self._product(unit, self.weight.mT, out)

    @torch.no_grad()
    def weigh_rows(self, row_weight: torch.Tensor) -> None:
        """Write `weighted`: each bottleneck row times its weight [R] in the objective's gradient."""
        torch.mul(self.unit, row_weight.unsqueeze(-1), out=self.weighted)

    @torch.no_grad()
    def backward_logits(self, grad_logits: torch.Tensor, tile: slice) -> None:
        """Take in the gradient [G, T, C] of a tile's logits, not yet weighted by row. The first tile starts at 0."""
        self._product(grad_logits, self.weight, self.grad_unit[:, tile])
        if (gradient := self.values["prototypes"].grad) is not None:
            self._product(grad_logits.mT, self.weighted[:, tile], gradient, add=tile.start > 0)

    @torch.no_grad()
    def backward(self, x: torch.Tensor, row_weight: torch.Tensor) -> None:
        """Write the gradients of all parameters, after `embed` of the same x and all tiles of `backward_logits`."""
        value, grad_unit = self.values, self.grad_unit
        # Of a vector that is scaled to length 1, only what is orthogonal to it has a gradient.
        torch.mul(grad_unit, self.unit, out=self.weighted)
        grad_unit.addcmul_(self.unit, self.weighted.sum(dim=-1, keepdim=True), value=-1)
        grad_unit.mul_(row_weight.unsqueeze(-1) / self.length)
        self._product(self.hidden.mT, grad_unit, value["weight_2"].grad)
        torch.sum(grad_unit, dim=1, out=value["bias_2"].grad)
        self._product(grad_unit, value["weight_2"].mT, self.hidden)
        torch.ops.aten.gelu_backward.grad_input(self.hidden, self.before_gelu, grad_input=self.hidden)
        self._product(x.T.expand(self.size, *x.T.shape), self.hidden, value["weight_1"].grad)
        torch.sum(self.hidden, dim=1, out=value["bias_1"].grad)
        if (gradient := value["prototypes"].grad) is not None:
            # The same for the prototypes; their effective weights are no longer needed and lend their memory.
            torch.mul(gradient, value["prototypes"], out=self.weight)
            along = self.weight.sum(dim=-1, keepdim=True).div_(self.prototype_length)
            torch.div(along.squeeze(-1), self.temperature, out=value["gain"].grad)
            gradient.addcmul_(value["prototypes"], along.div_(self.prototype_length), value=-1).mul_(self.scale)

    def _product(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        out: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        add: bool = False,
    ) -> torch.Tensor:
        """out = a @ b, with a bias [G, columns] or added to what `out` holds."""
        if self.precision == "bfloat16":
            found = torch.bmm(a.bfloat16(), b.bfloat16())
            start = out if add else None if bias is None else bias.unsqueeze(1)
            return out.copy_(found) if start is None else torch.add(start, found, out=out)
        return batched_product(a, b, out, bias=bias, add=add)
