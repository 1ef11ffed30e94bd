"""EDM preconditioning, noise levels and training loss (Karras et al. 2022, Table 1, column "Ours").

Shapes: B batch, S image side. Images are float in [-1, 1]; a noise level sigma is a standard deviation in those units.
"""

import dataclasses

import torch
from pydantic import Field
from torch import Tensor, nn

from cedm_ray.config import Config
from cedm_ray.diffusion.unet import UNet


class EDMConfig(Config):
    """How noise enters training and how the network is preconditioned."""

    sigma_data: float = Field(0.5, gt=0, description="Standard deviation of the images, in units of [-1, 1].")
    p_mean: float = Field(-1.2, description="Mean of ln(sigma) of the training noise levels.")
    p_std: float = Field(1.2, gt=0, description="Standard deviation of ln(sigma) of the training noise levels.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioning:
    """The four factors of Table 1, each with the shape of the sigma they belong to.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), so that the input and the target of F have unit variance.
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def preconditioning(sigma: Tensor, sigma_data: float) -> Preconditioning:
    """The factors at noise levels sigma > 0 (any shape), for images of standard deviation sigma_data."""
    total = (sigma.square() + sigma_data**2).sqrt()
    return Preconditioning(
        c_skip=(sigma_data / total).square(),
        c_out=sigma * sigma_data / total,
        c_in=1 / total,
        c_noise=sigma.log() / 4,
    )


def loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, which makes every noise level weigh the same."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def draw_sigma(count: int, config: EDMConfig, generator: torch.Generator) -> Tensor:
    """Training noise levels [count], one per image, with ln(sigma) ~ N(p_mean, p_std^2), on the generator's device."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return (normal * config.p_std + config.p_mean).exp()


class Denoiser(nn.Module):
    """D(x; sigma): the preconditioned network, an estimate of the clean image.

    Only the network may compute in half precision (`UNet.compute_dtype`); its output is taken back to the precision of
    x before it is combined, because c_skip x + c_out F cancels digits at small sigma.
    """

    def __init__(self, net: UNet, config: EDMConfig) -> None:
        super().__init__()
        self.net = net
        self.config = config

    @property
    def num_classes(self) -> int:
        """Number of classes of the condition; 0 for a network without classes."""
        return self.net.num_classes

    @property
    def feature_dim(self) -> int:
        """Width D of the feature vectors that are the condition; 0 for a network without them."""
        return self.net.feature_dim

    def forward(
        self, x: Tensor, sigma: Tensor, conditions: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Denoise x [B, 3, S, S] at sigma [B], given conditions and augmentation labels [B, 9].

        conditions: classes [B] int64 (-1 = null), features [B, D] float of unit length (zeros = null), or None for an
        unconditional network and only then. augment_labels None means "not augmented". Returns [B, 3, S, S] in the
        dtype of x.
        """
        factors = preconditioning(sigma.view(-1, 1, 1, 1), self.config.sigma_data)
        residual = self.net(factors.c_in * x, factors.c_noise.view(-1), conditions, augment_labels)
        return factors.c_skip * x + factors.c_out * residual.to(x.dtype)


def edm_loss(
    denoiser: nn.Module,
    clean: Tensor,
    conditions: Tensor | None,
    augment_labels: Tensor | None,
    sigma: Tensor,
    noise: Tensor,
    *,
    sigma_data: float,
) -> Tensor:
    """The training loss of each image [B]: lambda(sigma) |D(clean + sigma noise; sigma) - clean|^2, summed over pixels.

    clean: [B, 3, S, S], already augmented. conditions: as `Denoiser` takes them. augment_labels: [B, 9] or None.
    sigma: [B]. noise: [B, 3, S, S], unit normal. denoiser: a `Denoiser`, or one wrapped for data-parallel training,
    which is why sigma_data is an argument of its own.
    """
    denoised = denoiser(clean + sigma.view(-1, 1, 1, 1) * noise, sigma, conditions, augment_labels)
    return loss_weight(sigma, sigma_data) * (denoised - clean).square().sum(dim=(1, 2, 3))
