"""The DDPM++ U-Net of EDM (Song et al. 2021; Karras et al. 2022, appendix F.2), conditional on noise level, on a class
or a feature vector, and on augmentation.

Shapes: B batch, S image side, D width of a feature condition, E width of the embedding. The layers' own init is left
out: `UNet` draws every weight from one seed, in a fixed order, so that a network is a function of (configuration,
seed).
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cedm_ray.config import Config
from cedm_ray.diffusion.convolution import convolve
from cedm_ray.diffusion.dropout import dropout

SKIP_SCALE = math.sqrt(0.5)
"""Factor on the sum of two branches of equal variance that keeps the variance."""

ALMOST_ZERO = 1e-5
"""Gain of the last layer of every residual branch: the network starts as nearly nothing, without dead gradients."""

MAX_PERIOD = 10_000
"""Ratio of the highest to the lowest frequency of the noise-level embedding."""


class UNetConfig(Config):
    """Size and regularization of the network; the defaults are EDM's for CIFAR-10 at 32 pixels."""

    model_channels: int = Field(128, ge=4, multiple_of=4, description="Channels at multiplier 1.")
    channel_mult: tuple[int, ...] = Field(
        (2, 2, 2), min_length=1, description="Channel multiplier of each level; each level halves the resolution."
    )
    num_blocks: int = Field(4, ge=1, description="Residual blocks per level of the encoder; the decoder has one more.")
    attention_resolutions: tuple[int, ...] = Field(
        (16,), description="Sides in pixels of the levels with self-attention; the lowest level always has one."
    )
    dropout: float = Field(0.13, ge=0, lt=1, description="Probability that an activation is dropped in training.")
    label_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that an image's condition is replaced by the null one in training."
    )

    @property
    def side_step(self) -> int:
        """What the side of the images must be a multiple of: 2^(levels - 1)."""
        return 2 ** (len(self.channel_mult) - 1)


class _Conv(nn.Conv2d):
    """A convolution that keeps the resolution; `gain` scales its initial weights. Computes in the precision of x."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def reset_parameters(self) -> None:
        """Draws nothing: torch would draw from its global generator here."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    def draw(self, generator: torch.Generator) -> None:
        nn.init.xavier_uniform_(self.weight, generator=generator)
        self.weight.mul_(self.gain)
        self.bias.zero_()


class _Linear(nn.Linear):
    """A linear layer."""

    def reset_parameters(self) -> None:
        """Draws nothing: torch would draw from its global generator here."""

    def draw(self, generator: torch.Generator) -> None:
        nn.init.xavier_uniform_(self.weight, generator=generator)
        if self.bias is not None:
            self.bias.zero_()


class _Affines(nn.Module):
    """The linear layers that bring the embedding to each block, as one: a matrix product for all instead of one each.

    sizes: channels of each block.
    """

    def __init__(self, width: int, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.weight = nn.Parameter(torch.empty(sum(sizes), width))
        self.bias = nn.Parameter(torch.empty(sum(sizes)))

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """embedding [B, E] to one [B, channels, 1, 1] for each block, in the precision of the embedding."""
        dtype = embedding.dtype
        shifts = F.linear(embedding, self.weight.to(dtype), self.bias.to(dtype))
        return shifts[:, :, None, None].split(self.sizes, dim=1)

    def draw(self, generator: torch.Generator) -> None:
        for weight in self.weight.split(self.sizes):
            nn.init.xavier_uniform_(weight, generator=generator)
        self.bias.zero_()


class _ClassEmbedding(nn.Module):
    """Linear(one_hot * sqrt(num_classes)) with bias, as a look-up. Class -1 is the null label, all zeros."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, classes: Tensor) -> Tensor:
        known = (classes >= 0).to(self.weight.dtype) * math.sqrt(len(self.weight))
        return F.embedding(classes.clamp(min=0), self.weight) * known[:, None] + self.bias

    def draw(self, generator: torch.Generator) -> None:
        nn.init.xavier_uniform_(self.weight, generator=generator)
        self.bias.zero_()


class _FeatureEmbedding(_Linear):
    """Linear(f * sqrt(D)) with bias, for f of unit length as a one-hot vector is. f = 0 is the null condition."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.to(self.weight.dtype) * math.sqrt(self.in_features))


class _Norm(nn.GroupNorm):
    """Group normalization; sums in float32 and answers in the precision of x."""

    def __init__(self, channels: int) -> None:
        super().__init__(min(32, channels // 4), channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalization of x [B, C, H, W], with weight and bias [C], in steps that a compiler fuses.

    torch's own brings the channels to the front on a GPU, there and back at every layer. Here sums run over the pixels
    of each channel, in float32, which reads memory in its order where the channels lie last; groups are formed of them.
    """
    values = x.float()
    groups = num_groups, -1
    mean = values.mean(dim=(2, 3)).unflatten(1, groups)
    square = values.square().mean(dim=(2, 3)).unflatten(1, groups)
    mean, square = mean.mean(dim=2, keepdim=True), square.mean(dim=2, keepdim=True)
    scale = weight.unflatten(0, groups) * (square - mean.square()).clamp_min(0).add(eps).rsqrt()
    shift = bias.unflatten(0, groups) - mean * scale
    return (values * scale.flatten(1)[:, :, None, None] + shift.flatten(1)[:, :, None, None]).to(x.dtype)


class _Attention(nn.Module):
    """Single-head self-attention over the pixels, with its residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _Norm(channels)
        self.qkv = _Conv(channels, 3 * channels, 1, gain=math.sqrt(0.2))
        self.proj = _Conv(channels, channels, 1, gain=ALMOST_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        # [B, 3 channels, S, S] to three of [B, 1 head, S * S, channels].
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.unflatten(2, (height, -1))
        return (x + self.proj(mixed)).mul_(SKIP_SCALE)


class _Block(nn.Module):
    """A residual block: two convolutions, the embedding added between them, optionally resampling and attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = up
        self.down = down
        self.norm0 = _Norm(in_channels)
        self.conv0 = _Conv(in_channels, out_channels, 3)
        self.norm1 = _Norm(out_channels)
        self.conv1 = _Conv(out_channels, out_channels, 3, gain=ALMOST_ZERO)
        self.shortcut = _Conv(in_channels, out_channels, 1) if in_channels != out_channels or up or down else None
        self.attention = _Attention(out_channels) if attention else None

    def forward(self, x: Tensor, shift: Tensor, skip: Tensor | None = None) -> Tensor:
        """x [B, in_channels, S, S] and the block's share of the embedding, [B, out_channels, 1, 1].

        skip: what comes from the encoder, the last of the in_channels. It is joined here and not before, so that a
        compiled block gives x and skip a gradient each; slices of one would have to be copied into their own memory.
        """
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        h = F.silu(self.norm0(x))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.up:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
        h = F.silu(self.norm1(self.conv0(h) + shift))
        h = self.conv1(dropout(h, self.dropout) if self.training else h)
        if self.shortcut is not None:
            x = self.shortcut(x)
        if self.up:
            # A pointwise convolution and a nearest-neighbor enlargement commute; this order costs a quarter.
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        h = (h + x).mul_(SKIP_SCALE)
        return h if self.attention is None else self.attention(h)


class UNet(nn.Module):
    """F(x; c_noise): the raw network, before preconditioning.

    image_size: S in pixels. num_classes: classes of the condition; feature_dim: D of a feature vector as the condition.
    At most one of them is above 0; both 0 = unconditional. augment_dim: width of the augmentation label, 0 = none.
    seed: what the initial weights are drawn from; all weights but those of the condition's embedding are the same for
    every condition, so that searches over it start from one network.

    compute_dtype: precision of the activations, None = that of x. The weights keep theirs, which is float32.
    memory_format: layout of the activations, set by `arrange`.

    Raises ValueError when S is not divisible by 2^(levels - 1).
    """

    compute_dtype: torch.dtype | None = None
    memory_format: torch.memory_format = torch.contiguous_format

    def __init__(
        self,
        config: UNetConfig,
        image_size: int,
        num_classes: int,
        augment_dim: int,
        *,
        feature_dim: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        levels = len(config.channel_mult)
        if image_size < 1 or image_size % config.side_step:
            rule = f"image_size must be a positive multiple of {config.side_step} for {levels} levels"
            raise ValueError(f"{rule}, got {image_size}")
        for name, value in (("num_classes", num_classes), ("feature_dim", feature_dim), ("augment_dim", augment_dim)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if num_classes and feature_dim:
            raise ValueError(f"num_classes and feature_dim exclude each other, got {num_classes} and {feature_dim}")
        self.config = config
        self.image_size = image_size
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.augment_dim = augment_dim
        base = config.model_channels
        width = 4 * base

        exponents = torch.arange(base // 2) / (base // 2 - 1)
        self.register_buffer("frequencies", (1 / MAX_PERIOD) ** exponents, persistent=False)
        self.map_class = _ClassEmbedding(num_classes, base) if num_classes else None
        self.map_feature = _FeatureEmbedding(feature_dim, base) if feature_dim else None
        self.map_augment = _Linear(augment_dim, base, bias=False) if augment_dim else None
        self.map0 = _Linear(base, width)
        self.map1 = _Linear(width, width)

        def block(in_channels: int, out_channels: int, **kind: bool) -> _Block:
            return _Block(in_channels, out_channels, config.dropout, **kind)

        self.conv_in = _Conv(3, base, 3)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        channels, skips = base, [base]
        for level, multiplier in enumerate(config.channel_mult):
            attention = image_size >> level in config.attention_resolutions
            if level:
                self.encoder.append(block(channels, channels, down=True))
                skips.append(channels)
            for _ in range(config.num_blocks):
                self.encoder.append(block(channels, base * multiplier, attention=attention))
                channels = base * multiplier
                skips.append(channels)
        self.middle = nn.ModuleList([block(channels, channels, attention=True), block(channels, channels)])
        for level, multiplier in reversed(list(enumerate(config.channel_mult))):
            attention = image_size >> level in config.attention_resolutions
            if level < levels - 1:
                self.decoder.append(block(channels, channels, up=True))
            for index in range(config.num_blocks + 1):
                last = index == config.num_blocks
                self.decoder.append(block(channels + skips.pop(), base * multiplier, attention=attention and last))
                channels = base * multiplier
        self.norm_out = _Norm(channels)
        self.conv_out = _Conv(channels, 3, 3, gain=ALMOST_ZERO)
        self.affines = _Affines(width, [block.conv0.out_channels for block in self.blocks()])
        self._draw_weights(seed)

    def blocks(self) -> list[_Block]:
        """The residual blocks in the order of the computation."""
        return [*self.encoder, *self.middle, *self.decoder]

    def compilable(self) -> list[nn.Module]:
        """What is worth compiling, each part by itself: the blocks, and the normalization after them."""
        return [*self.blocks(), self.norm_out]

    def arrange(self, device: torch.device) -> "UNet":
        """Move to the device, weights and activations with the channels last; returns itself.

        Tensor cores want that, and a CPU's convolutions are faster then too: 1x1 ones are products of pixels, oneDNN
        reorders no activations, and gradients of wide 3x3 weights are products as well, where the processor gains by it
        (`convolution.py`).
        """
        self.memory_format = torch.channels_last
        for weight in self.parameters():
            # Not `Module.to`, which refuses tensors without data (memory.py).
            layout = self.memory_format if weight.ndim == 4 else torch.contiguous_format
            weight.data = weight.data.to(device=device, memory_format=layout)
        self.frequencies = self.frequencies.to(device)
        return self

    @torch.no_grad()
    def _draw_weights(self, seed: int) -> None:
        if self.affines.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        conditions = (self.map_class, self.map_feature)
        for layer in self.modules():
            if hasattr(layer, "draw") and layer not in conditions:
                layer.draw(generator)
        for layer in conditions:
            # Last, so that the draws of the other layers do not depend on the condition.
            if layer is not None:
                layer.draw(generator)

    def forward(
        self, x: Tensor, c_noise: Tensor, conditions: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """x [B, 3, S, S], c_noise [B], augment_labels [B, augment_dim] or None (= zeros, not augmented). conditions:
        classes [B] int64 (-1 = null label), features [B, D] float of unit length (zeros = null), or None for an
        unconditional network. Returns [B, 3, S, S].

        Raises ValueError when conditions or augmentation labels do not fit what the network was built for.
        """
        dtype = self.compute_dtype or x.dtype
        shifts = iter(self.affines(self._embed(c_noise, conditions, augment_labels).to(dtype)))
        x = self.conv_in(x.to(dtype, memory_format=self.memory_format))
        skips = [x]
        for block in self.encoder:
            x = block(x, next(shifts))
            skips.append(x)
        for block in self.middle:
            x = block(x, next(shifts))
        for block in self.decoder:
            x = block(x, next(shifts), None if block.up else skips.pop())
        return self.conv_out(F.silu(self.norm_out(x)))

    def _embed(self, c_noise: Tensor, conditions: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The embedding [B, E] that every block adds, its last nonlinearity included, in float32."""
        self._check(conditions, augment_labels)
        embedding = position_embedding(c_noise, self.frequencies)
        if conditions is not None:
            if self.training and self.config.label_dropout:
                dropped = torch.rand(len(conditions), device=conditions.device) < self.config.label_dropout
                null = 0 if self.feature_dim else -1
                conditions = conditions.masked_fill(dropped[:, None] if self.feature_dim else dropped, null)
            embed = self.map_feature if self.feature_dim else self.map_class
            embedding = embedding + embed(conditions)
        if augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels)
        return F.silu(self.map1(F.silu(self.map0(embedding))))

    def _check(self, conditions: Tensor | None, augment_labels: Tensor | None) -> None:
        if augment_labels is not None and self.map_augment is None:
            raise ValueError("augment_labels must be None for a network with augment_dim 0, got labels")
        if self.feature_dim:
            wanted = f"features of width {self.feature_dim}"
            fits = conditions is not None and conditions.ndim == 2 and conditions.shape[1] == self.feature_dim
        elif self.num_classes:
            wanted = f"classes of {self.num_classes}"
            fits = conditions is not None and conditions.ndim == 1 and not conditions.is_floating_point()
        else:
            wanted, fits = "None", conditions is None
        if not fits:
            got = "None" if conditions is None else f"{conditions.dtype} {list(conditions.shape)}"
            raise ValueError(f"conditions must be {wanted} for this network, got {got}")


def position_embedding(values: Tensor, frequencies: Tensor) -> Tensor:
    """Sinusoids [B, 2 K] of values [B] at frequencies [K]: K sines, then K cosines."""
    phases = values[:, None] * frequencies
    return torch.cat((phases.sin(), phases.cos()), dim=1)
