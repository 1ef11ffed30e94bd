"""Pseudo-labels by CLIP: each image gets the class whose name, in a sentence, lies nearest to it.

Not label-free, for the names of the classes are needed; the paper compares with it. The embeddings come from outside:
images and texts through one CLIP model (`features.openclip`).

Shapes: N images, K classes, P prompts, D embedding width.
Source: section 4.4 and the appendix of the paper (the prompts); method.md 3.6 (the order of averaging).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cedm_ray.clustering.assignment import ClusterAssignment

# As they stand in the paper, article and all.
PROMPTS = (
    "a photo of a {}",
    "a blurry photo of a {}",
    "a photo of many {}",
    "a photo of the large {}",
    "a photo of the small {}",
)
_TILE_ROWS = 8192


def class_prompts(names: Sequence[str], prompts: Sequence[str] = PROMPTS) -> list[str]:
    """Every name in every prompt: K * P texts, the P of the first name first. Raises ValueError unless the names are
    different words."""
    if not names or len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise ValueError(f"names must be different words, got {list(names)[:10]}")
    return [prompt.format(name) for name in names for prompt in prompts]


def prompt_ensemble(text_embeddings: np.ndarray) -> np.ndarray:
    """One embedding for each class: [K, P, D] -> float32 [K, D] of unit length.

    Each text's embedding is brought to unit length, the P of a class are averaged, and the mean is brought to unit
    length again. Raises ValueError for embeddings that are not finite or have no direction.
    """
    if text_embeddings.ndim != 3 or 0 in text_embeddings.shape:
        raise ValueError(f"text_embeddings must have shape [K, P, D], got {text_embeddings.shape}")
    return _unit(_unit(text_embeddings, "text_embeddings").mean(axis=1), "the means of text_embeddings")


def zero_shot(
    image_embeddings: np.ndarray, class_embeddings: np.ndarray, *, provenance: Mapping[str, Any] | None = None
) -> ClusterAssignment:
    """The class of the highest cosine for each image; of equal ones the first. C = K, method "clip".

    image_embeddings: [N, D]; class_embeddings: [K, D], of any length. (The softmax over classes, which the paper
    mentions, changes no maximum.) provenance: plain JSON values that say which model and which names. Raises ValueError
    for shapes that do not belong together and for embeddings that are not finite or have no direction.
    """
    for what, array in (("image_embeddings", image_embeddings), ("class_embeddings", class_embeddings)):
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{what} must have shape [rows, D], got {array.shape}")
    if image_embeddings.shape[1] != class_embeddings.shape[1]:
        raise ValueError(
            f"image_embeddings and class_embeddings must have one width D, got {image_embeddings.shape[1]}"
            f" and {class_embeddings.shape[1]}: they come from two models"
        )
    classes = _unit(class_embeddings, "class_embeddings")
    labels = np.empty(len(image_embeddings), dtype=np.int32)
    for start in range(0, len(labels), _TILE_ROWS):
        tile = image_embeddings[start : start + _TILE_ROWS]
        labels[start : start + len(tile)] = (_unit(tile, "image_embeddings", start) @ classes.T).argmax(axis=1)
    return ClusterAssignment(labels=labels, num_clusters=len(classes), method="clip", provenance=dict(provenance or {}))


def _unit(vectors: np.ndarray, what: str, first_row: int = 0) -> np.ndarray:
    """Vectors along the last axis brought to unit length, float32."""
    values = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    bad = ~(np.isfinite(lengths) & (lengths > 0))
    if bad.any():
        row = first_row + int(np.argwhere(bad)[0][0])
        raise ValueError(f"{what} must be finite and not zero, which row {row} is not ({int(bad.sum())} such vectors)")
    return values / lengths
