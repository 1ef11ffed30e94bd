"""What training changes, and how the optimizer is set: the denoiser, its average, Adam and the counters.

Source: Karras et al. 2022, Table 1 and appendix F; method.md 3.4.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cedm_ray.config import Config
from cedm_ray.diffusion.augment import NUM_LABELS, AugmentConfig
from cedm_ray.diffusion.edm import Denoiser, EDMConfig
from cedm_ray.diffusion.unet import UNet, UNetConfig

MAX_RAMPUP_KIMG = 10_000
"""Ramp of the paper's runs, and the longest one that `lr_rampup_kimg = None` chooses."""


class TrainConfig(Config):
    """How the denoiser is optimized."""

    batch_size: int = Field(512, ge=1, description="Images per optimizer step, over all workers.")
    microbatch: int | None = Field(
        None, ge=1, description="Images per forward pass and worker; gradients add up. None = a worker's whole share."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's learning rate after the ramp.")
    lr_rampup_kimg: float | None = Field(
        None,
        ge=0,
        description="Thousands of images over which the learning rate rises linearly from 0; 0 = no ramp. None = a "
        "tenth of the run's budget, at most 10,000: a ramp of 10,000 would hide the rungs of a short search in it.",
    )
    ema_halflife_kimg: float = Field(
        500.0, ge=0, description="Half-life of the weight average, in thousands of images."
    )
    ema_rampup_ratio: float | None = Field(
        0.05, gt=0, description="The half-life is at most this share of the images seen. None = no such bound."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="What the network computes in (weights and loss stay float32). auto = bfloat16 on CUDA devices of "
        "capability 8 and later, float16 with loss scaling on older ones, float32 on CPUs.",
    )
    compile: bool | None = Field(
        None,
        description="Whether torch.compile fuses each residual block; changes speed only. None = on CUDA devices, "
        "where training goes on without it if compiling fails, and not on CPUs, where convolutions bound the step.",
    )
    max_skipped_steps: int = Field(
        20, ge=1, description="Steps in a row without a finite loss and gradient after which training has diverged."
    )


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainState:
    """All that training changes. `tensors()` with the two counters is a checkpoint that fits any number of workers.

    net: the denoiser that is optimized. ema: its average, in eval mode, which is what samples are drawn from.
    scaler: loss scaling, only for float16. images_seen: images so far, those of skipped steps included.
    skipped_steps: steps so far whose loss or gradient was not finite. replica: `net` wrapped for data-parallel
    training, made when it is first needed. compiled: whether `net` computes by compiled blocks; None = not tried yet.
    """

    net: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler | None
    images_seen: int = 0
    skipped_steps: int = 0
    replica: DistributedDataParallel | None = None
    compiled: bool | None = None

    @classmethod
    def create(
        cls,
        unet_config: UNetConfig,
        edm_config: EDMConfig,
        train_config: TrainConfig,
        augment_config: AugmentConfig,
        image_size: int,
        num_classes: int,
        seed: int,
        device: torch.device | str,
        *,
        feature_dim: int = 0,
    ) -> "TrainState":
        """A fresh state: a function of the configurations and the seed.

        num_classes = 0 and feature_dim = 0: unconditional.
        """
        device = torch.device(device)
        augment_dim = NUM_LABELS if augment_config.probability else 0
        unet = UNet(unet_config, image_size, num_classes, augment_dim, feature_dim=feature_dim, seed=seed)
        net = Denoiser(unet.arrange(device), edm_config)
        ema = copy.deepcopy(net).eval().requires_grad_(False)
        optimizer = torch.optim.Adam(net.parameters(), lr=train_config.learning_rate, fused=True)
        for weight in net.parameters():
            # What Adam would make in its first step, made now so that every checkpoint has the same tensors.
            optimizer.state[weight] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        # After the copy: the average is sampled from in float32.
        unet.compute_dtype = compute_dtype(train_config.precision, device)
        half = unet.compute_dtype == torch.float16
        return cls(net=net, ema=ema, optimizer=optimizer, scaler=torch.amp.GradScaler(device.type) if half else None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.net.net.conv_in.weight.device

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU, by flat names: net.*, ema.*, optimizer.*.{step,exp_avg,exp_avg_sq} and scaler.*."""
        copies = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self._live_tensors().items()
        }
        if self.scaler is not None:
            scaler = self.scaler.state_dict()
            copies["scaler.scale"] = torch.tensor(scaler["scale"], dtype=torch.float64)
            copies["scaler.growth_tracker"] = torch.tensor(scaler["_growth_tracker"])
        return copies

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], images_seen: int, skipped_steps: int) -> None:
        """Take over what `tensors()` and the counters of another state were.

        The scaler's tensors are read by a state with loss scaling only, so that a run can move to other hardware.
        Raises ValueError when names or shapes are not those of this state; nothing is changed then.
        """
        live = self._live_tensors()
        weights = {name for name in tensors if not name.startswith("scaler.")}
        if weights != live.keys():
            name = min(weights ^ live.keys())
            raise ValueError(
                f"tensors must be those of this network, {name} is {'not' if name in live else 'only'} there"
            )
        for name, tensor in live.items():
            if tensors[name].shape != tensor.shape:
                raise ValueError(f"{name} must have shape {list(tensor.shape)}, got {list(tensors[name].shape)}")
        for name, tensor in live.items():
            tensor.copy_(tensors[name])
        if self.scaler is not None and "scaler.scale" in tensors:
            scaler = self.scaler.state_dict()
            scaler["scale"] = tensors["scaler.scale"].item()
            scaler["_growth_tracker"] = int(tensors["scaler.growth_tracker"])
            self.scaler.load_state_dict(scaler)
        self.images_seen = images_seen
        self.skipped_steps = skipped_steps

    def _live_tensors(self) -> dict[str, Tensor]:
        live = {f"net.{name}": weight for name, weight in self.net.net.named_parameters()}
        live |= {f"ema.{name}": weight for name, weight in self.ema.net.named_parameters()}
        for name, weight in self.net.net.named_parameters():
            live |= {f"optimizer.{name}.{key}": tensor for key, tensor in self.optimizer.state[weight].items()}
        return live


def learning_rate_at(images_seen: int, config: TrainConfig, total_kimg: float) -> float:
    """Learning rate of the step that follows `images_seen` images, in a run of total_kimg thousand images."""
    ramp_kimg = config.lr_rampup_kimg
    if ramp_kimg is None:
        ramp_kimg = min(MAX_RAMPUP_KIMG, total_kimg / 10)
    if ramp_kimg == 0:
        return config.learning_rate
    return config.learning_rate * min(images_seen / (ramp_kimg * 1000), 1.0)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What the activations of the trained network are on the device, for `TrainConfig.precision`; None = float32."""
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
