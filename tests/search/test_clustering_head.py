"""A head that is opened again clusters the training images as the fit did."""

import numpy as np
import pytest
import torch

from cedm_ray import durable
from cedm_ray.errors import ConfigurationError
from cedm_ray.features.store import open_features
from cedm_ray.search.clustering_head import open_head
from cedm_ray.search.trial import load_assignment


def test_the_head_gives_the_labels_of_the_fit(fresh):
    (key,) = (path.name for path in (fresh.path / "features").iterdir())
    features = open_features(fresh.features(key))
    head = open_head(fresh, 4)
    logits = head(torch.from_numpy(np.array(features)))
    assert (head.temperature, head.feature_norm) == (0.1, "standardize")
    assert logits.shape == (300, 4)
    assert logits.dtype == torch.float32
    assert np.array_equal(logits.argmax(1).numpy(), load_assignment(fresh, 4).labels)


def test_a_clustering_without_a_head_says_so(fresh):
    path = fresh.fit("c00004-r0")
    tensors, about = durable.read_tensors(path)
    durable.write_tensors(path, {"labels": tensors["labels"]}, about)
    with pytest.raises(ConfigurationError, match="has no head"):
        open_head(fresh, 4)
    with pytest.raises(ConfigurationError, match="not conditioned on clusters"):
        open_head(fresh, None)
