"""TEMI: many small heads that learn to give an image and its neighbor the same cluster, and to use all clusters.

Shapes: N images, D feature width, H heads, C clusters. Source: Adaloglou et al., "Exploring the Limits of Deep Image
Clustering using Pretrained Models"; Eq. 1 and Table 8 of the paper. Settings: `recipe.py`; what a device holds for all
fits: `pairs.py`; the loss: `objective.py`; one step: `training.py`; what a fit takes: `plan.py`.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.heads import Heads
from cedm_ray.clustering.pairs import TemiData, draw_pairs
from cedm_ray.clustering.plan import assignment_rows
from cedm_ray.clustering.recipe import TemiConfig, learning_rate
from cedm_ray.clustering.training import new_training, random_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class TemiProgress:
    """Where a fit stands after an epoch.

    epoch: epochs done, from 1 to `epochs`. loss: Eq. 1 averaged over heads and steps of this epoch. learning_rate:
    that of its last step. num_used: C^u if the fit ended here, by the head that is best so far. marginal_entropy: in
    nats, of that head's teacher's marginal after the epoch: log C where all clusters are used alike, 0 where one is.
    note: what the user should know, after the first epoch alone: that compiling failed, and why; None for nothing.
    """

    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    num_used: int
    marginal_entropy: float
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TemiFit:
    """What a fit found.

    assignment: argmax of the best head's teacher over all images. best_head: the head with the lowest loss over the
    last epoch. head_losses: those losses, float64 [H]; comparable among heads, not among different C or gamma.
    head: the best teacher head's parameters by their names in `Heads` (float32, one leading dimension of 1), and
    `feature_mean` and `feature_scale` [D] where the features were standardized.
    """

    assignment: ClusterAssignment
    best_head: int
    head_losses: np.ndarray
    head: dict[str, np.ndarray]


def fit_temi(
    data: TemiData, num_clusters: int, config: TemiConfig, *, seed: int
) -> Generator[TemiProgress, None, TemiFit]:
    """Train TEMI, yielding after each epoch and returning a TemiFit (as the value of StopIteration).

    data: from `load_temi_data` with the same config; other fits may use it meanwhile, on the same device.
    num_clusters: C, in [2, N]. seed: a non-negative integer; weights depend on it alone, pairs on it, the epoch and
    the kind of device.

    Raises ValueError for arguments that break these rules and for a memory budget that is too small, and
    FloatingPointError, naming epoch and step, where the loss is not finite.
    """
    num_images = len(data.rows)
    if not 2 <= num_clusters <= num_images:
        raise ValueError(f"num_clusters must lie in [2, N] = [2, {num_images}], got {num_clusters}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    made_for = data.feature_norm, data.partners.shape[1]
    if (config.feature_norm, config.num_neighbors) != made_for:
        raise ValueError(
            "data must be loaded with the feature_norm and num_neighbors of config,"
            f" {config.feature_norm} and {config.num_neighbors}, got {made_for[0]} and {made_for[1]}"
        )
    device = data.device
    batch = min(config.batch_size, num_images)
    steps = max(1, num_images // batch)
    training = new_training(data.rows.shape[1], num_clusters, config, batch=batch, seed=seed, device=device)
    for epoch in range(config.epochs):
        training.set_last_layer_trained(epoch >= config.freeze_last_layer_epochs)
        pairs = draw_pairs(data.partners, stream=random_stream(seed, 1, epoch))[: steps * batch].view(steps, 2 * batch)
        losses = torch.empty(steps, config.num_heads, device=device)
        for step in range(steps):
            rate = learning_rate(epoch * steps + step, steps_per_epoch=steps, batch=batch, config=config)
            losses[step] = training.step(data.rows[pairs[step]], rate)
        # One look at the losses for each epoch: a look at each step would make the device wait for the host.
        finite = losses.isfinite().all(dim=1).tolist()
        if not all(finite):
            raise FloatingPointError(f"the loss is not finite at epoch {epoch + 1}, step {finite.index(False) + 1}")
        head_losses = losses.double().mean(dim=0).cpu().numpy()
        best = int(head_losses.argmin())
        labels = _assign(training.teacher, data.rows, best)
        yield TemiProgress(
            epoch=epoch + 1,
            epochs=config.epochs,
            loss=float(head_losses.mean()),
            learning_rate=rate,
            num_used=int(np.count_nonzero(np.bincount(labels, minlength=num_clusters))),
            marginal_entropy=torch.special.entr(training.marginal[best].double()).sum().item(),
            note=training.note if epoch == 0 else None,
        )
    state = training.teacher.state_dict()
    parameters = {name: tensor[best : best + 1].cpu().numpy().copy() for name, tensor in state.items()}
    return TemiFit(
        assignment=ClusterAssignment(
            labels=labels,
            num_clusters=num_clusters,
            method="temi",
            provenance={
                "config": config.model_dump(mode="json"),
                "seed": seed,
                "best_head": best,
                "loss": float(head_losses[best]),
            },
        ),
        best_head=best,
        head_losses=head_losses,
        head=parameters | data.normalization,
    )


@torch.no_grad()
def _assign(teacher: Heads, rows: torch.Tensor, head: int) -> np.ndarray:
    """The cluster of every image by one teacher head, int32 [N]."""
    tiles = rows.split(assignment_rows(teacher.prototypes.shape[1]))
    one = slice(head, head + 1)
    labels = [teacher(tile, one)[0].argmax(dim=-1) for tile in tiles]
    return torch.cat(labels).to(torch.int32).cpu().numpy()
