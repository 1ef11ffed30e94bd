"""The feature vectors that a trial is conditioned on instead of clusters: the paper's oracle (Table 1, "features").

A network of features sees, for each training image, the features that the study clusters, brought to unit length as a
one-hot vector is; it is sampled from under the features of training images, of which each image draws one by its own
seed (method.md 3.6). The paper leaves open both the normalization and the choice of the rows. N images, D features.
"""

import numpy as np

from cedm_ray.features.store import open_features
from cedm_ray.search.study import Study


def unit_features(study: Study, key: str) -> np.ndarray:
    """The study's features of `key`, each row divided by its length: float32 [N, D], in memory.

    A row of zeros stays one, which is the null condition. Raises InputDataError where there are no such features,
    IntegrityError where they are not those that were written.
    """
    features = np.array(open_features(study.features(key)), dtype=np.float32)
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return np.divide(features, lengths, out=features, where=lengths > 0, casting="same_kind")
