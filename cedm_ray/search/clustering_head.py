"""The clustering head of a fit, applied to new images: what the confidence of generated images is read from.

Shapes: R rows, D feature width, C clusters.
"""

from collections.abc import Callable

import numpy as np
import torch

from cedm_ray import durable
from cedm_ray.clustering.heads import Heads
from cedm_ray.clustering.temi import TemiConfig
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.agenda import FitTask
from cedm_ray.search.study import Study

_TILE = 4096
_HEAD = "head."


def open_head(study: Study, num_clusters: int, config: TemiConfig) -> Callable[[np.ndarray], torch.Tensor]:
    """The best head of the fit that the trials of C are conditioned on: features [R, D] to logits float32 [R, C].

    The features are those of the study's extractor, and are normalized here as they were for the fit. The logits are
    not yet divided by a temperature. Raises ConfigurationError where the fit left no head.
    """
    tensors, _ = durable.read_tensors(study.fit(FitTask(num_clusters=num_clusters, repeat=0).name))
    head = {name.removeprefix(_HEAD): torch.from_numpy(tensors[name]) for name in tensors if name.startswith(_HEAD)}
    if "weight_1" not in head:
        raise ConfigurationError(f"the clustering of C = {num_clusters} has no head, so there is no confidence of it")
    mean, scale = head.pop("feature_mean", None), head.pop("feature_scale", None)
    _, width, hidden = head["weight_1"].shape
    generator = torch.Generator()
    bottleneck = head["weight_2"].shape[2]
    heads = Heads(1, width, num_clusters, hidden=hidden, bottleneck=bottleneck, generator=generator)
    heads.load_state_dict(head)

    @torch.inference_mode()
    def logits(features: np.ndarray) -> torch.Tensor:
        found = []
        for start in range(0, len(features), _TILE):
            rows = torch.from_numpy(np.array(features[start : start + _TILE], dtype=np.float32))
            if mean is not None:
                rows = (rows - mean) / scale
            elif config.feature_norm == "l2":
                rows = torch.nn.functional.normalize(rows, dim=1)
            found.append(heads(rows)[0])
        return torch.cat(found)

    return logits
