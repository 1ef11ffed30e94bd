"""The clustering head of a fit, applied to new images: what the confidence of generated images is read from.

The confidence of an image is the largest probability that the head gives any cluster (the paper's MSP, Figs. 8 and 14;
method.md 4.8): max_c softmax(logits / teacher temperature), on the features that the clustering was fitted on.

Shapes: R rows, D feature width, C clusters.
"""

from dataclasses import dataclass

import torch

from cedm_ray import durable
from cedm_ray.clustering.heads import Heads
from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.features.network import Extractor
from cedm_ray.features.store import feature_key
from cedm_ray.search.goals import FitTask
from cedm_ray.search.study import Study

_HEAD = "head."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusteringHead:
    """The best head of a fit, on one device.

    heads: that one head. features_key: of the stored features that it was fitted on. feature_norm: what was done to
    them (`TemiConfig.feature_norm`), with mean and scale float32 [D] where they were standardized, else None.
    temperature: the teacher's.
    """

    heads: Heads
    features_key: str
    feature_norm: str
    mean: torch.Tensor | None
    scale: torch.Tensor | None
    temperature: float

    @torch.inference_mode()
    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits float32 [R, C] of the extractor's features [R, D], not yet divided by the temperature."""
        if self.feature_norm == "l2":
            features = torch.nn.functional.normalize(features, dim=1)
        elif self.feature_norm == "standardize":
            features = (features - self.mean) / self.scale
        return self.heads(features)[0]


def check_extractor(head: ClusteringHead, images: ImageSet, extractor: Extractor) -> None:
    """Raise IntegrityError unless the head was fitted on what `extractor` makes of `images`, the study's own."""
    if feature_key(images, extractor) != head.features_key:
        mend = "put back the weights that the study was begun with"
        raise IntegrityError(f"{extractor.name} is not what the clusters were fitted on", mend=mend)


def open_head(study: Study, num_clusters: int | None, device: str = "cpu", *, fit: str | None = None) -> ClusteringHead:
    """The head of the clustering that trials of C = `num_clusters` are conditioned on, or of the fit of that name.

    Raises ConfigurationError for a model without clusters, a C without a clustering, and one that has no head.
    """
    if num_clusters is None:
        raise ConfigurationError("a model that is not conditioned on clusters has no head that could be confident")
    try:
        name = fit or FitTask(num_clusters=num_clusters, repeat=0).name
        tensors, about = durable.read_tensors(study.fit(name))
    except FileNotFoundError:
        raise ConfigurationError(f"{study.path} has no clustering with C = {num_clusters}") from None
    head = {name.removeprefix(_HEAD): torch.from_numpy(tensors[name]) for name in tensors if name.startswith(_HEAD)}
    if "weight_1" not in head:
        raise ConfigurationError(f"the clustering of C = {num_clusters} has no head, so there is no confidence of it")
    mean, scale = (head.pop(name, None) for name in ("feature_mean", "feature_scale"))
    _, width, hidden = head["weight_1"].shape
    sizes = {"hidden": hidden, "bottleneck": head["weight_2"].shape[2]}
    heads = Heads(1, width, num_clusters, generator=torch.Generator(), **sizes)
    heads.load_state_dict(head)
    return ClusteringHead(
        heads=heads.eval().requires_grad_(False).to(device),
        features_key=about["features"],
        feature_norm=about["config"]["feature_norm"],
        mean=None if mean is None else mean.to(device),
        scale=None if scale is None else scale.to(device),
        temperature=about["config"]["teacher_temperature"],
    )
