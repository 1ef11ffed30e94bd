"""How far generated images lie from the training images: too far is out of distribution, too near is memory.

n generated images, N training images, D feature width, C clusters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cedm_ray.metrics.similarity import most_similar

# Cosines are known to a few units in the last place (1e-6 in float32), and equal ones must count as equal.
ROUNDING_UNITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Memorization:
    """How many images lie as near to a training image as that training image's own neighbors do.

    share: 1 - authenticity of Alaa et al. 2022, in [0, 1]. similarity: cosine of each image to its nearest training
    image, [n]. row: which one that is, int64 [n]. memorized: whether no other training image lies nearer to that one
    than this image does, bool [n]. All on the CPU.
    """

    share: float
    similarity: np.ndarray
    row: np.ndarray
    memorized: np.ndarray


def nearest_training(
    features: Tensor, training: Tensor, *, tile_rows: int = 1024, tile_columns: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """The training image most similar to each image: (its cosine, float [n] in [-1, 1]; its row, int64 [n]).

    features: [n, D], training: [N, D], of any floating type; computed on the device of `training` and returned on the
    CPU. tile_rows, tile_columns: the block of cosines held at once.
    Raises ValueError for different D, or features that are not finite.
    """
    similarity, row = most_similar(features, training, tile_rows=tile_rows, tile_columns=tile_columns)
    return similarity[:, 0].clamp(-1, 1).cpu().numpy(), row[:, 0].cpu().numpy()


def memorization(
    features: Tensor, training: Tensor, *, tile_rows: int = 1024, tile_columns: int = 4096
) -> Memorization:
    """Share of images that are at least as near to a training image as its nearest neighbor in the training set is.

    New images of the training images' own distribution reach not 0 but the chance that nearest neighbors are mutual:
    2/3 where features fill one dimension, 0.62 in two, towards 1/2 in many (Clark and Evans 1955). What tells memory
    from chance is therefore the same figure of images never trained on (the test split); a model that copies lies above
    it. Nearness is the cosine of the features. Ties within rounding count as memorized, so that the copy of a training
    image that the set holds twice is not excused by its twin.

    features: [n, D], training: [N, D] with N at least 2, of any floating type; computed on the device of `training`.
    Raises ValueError as `nearest_training`.
    """
    tiles = {"tile_rows": tile_rows, "tile_columns": tile_columns}
    similarity, row = nearest_training(features, training, **tiles)
    hit, position = np.unique(row, return_inverse=True)
    rows = torch.from_numpy(hit).to(training.device)
    own, _ = most_similar(training[rows], training, own_rows=rows, **tiles)
    of_row = own[:, 0].clamp(-1, 1).cpu().numpy()[position]
    memorized = similarity >= of_row - ROUNDING_UNITS * np.finfo(similarity.dtype).eps
    return Memorization(share=float(memorized.mean()), similarity=similarity, row=row, memorized=memorized)


def novelty_auroc(generated_similarity: np.ndarray, test_similarity: np.ndarray) -> float:
    """Probability that a generated image lies farther from the training images than a test image does, in [0, 1].

    The 1-NN AUROC of the paper's Fig. 5: score = -similarity, generated = positive. 0.5: as far as test images are;
    higher: the generated images leave the distribution; lower: they cling to the training images. Ties count a half.

    generated_similarity: [n] of `nearest_training` of the generated images, test_similarity: that of the test split
    (any number of images each; the figure does not depend on it but for its scatter). Raises ValueError for an empty
    side or values that are not finite.
    """
    # Here because scikit-learn takes a second to import, which every process of a search would pay for nothing.
    from sklearn.metrics import roc_auc_score

    sides = []
    for name, side in (("generated_similarity", generated_similarity), ("test_similarity", test_similarity)):
        array = np.asarray(side, dtype=np.float64)
        if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite numbers [n] of at least one image, got the shape {array.shape}")
        sides.append(array)
    is_generated = np.repeat([1, 0], [len(side) for side in sides])
    return float(roc_auc_score(is_generated, -np.concatenate(sides)))


def confidence(logits: Tensor, temperature: float) -> Tensor:
    """The largest softmax probability of each image, in [1 / C, 1], [n] (the MSP of the paper's Figs. 8 and 14).

    logits: of the TEMI teacher's best head on the images' features, [n, C] of any floating type. temperature: the
    head's, above 0 (0.1 in the paper). Raises ValueError for another shape or temperature.
    """
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must have the shape [n, C], got {list(logits.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return (exact / temperature).softmax(dim=1).max(dim=1).values
