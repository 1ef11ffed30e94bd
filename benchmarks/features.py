"""Features for benchmarks: in clusters, as those of images are, so that neighbors stand out from the rest."""

import numpy as np


def clustered_features(num_images, width, num_clusters):
    """Float32 [N, D]: a normal cloud around each of so many normal centers."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(num_clusters, width)).astype(np.float32)
    rows = rng.standard_normal(size=(num_images, width), dtype=np.float32)
    rows += centers[rng.integers(num_clusters, size=num_images)]
    return rows
