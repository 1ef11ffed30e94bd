"""How much of a TEMI step is computed at once, and what memory a fit will take, before it starts.

Shapes: N images, D feature width, m neighbors, R rows of a step (two for each pair), T rows of a tile of the loss,
W hidden width, K bottleneck width, H heads, G heads of a group, C clusters.
"""

import math
from dataclasses import dataclass

from cedm_ray.clustering.recipe import TemiConfig

# Rows of the images that a head is applied to at once when it assigns them, and the most logits of one such tile.
ASSIGNMENT_ROWS, _ASSIGNMENT_LOGITS = 4096, 2**23
# On a CPU a group grows while its largest work tensor has no more bytes than this, measured with temi_step.py and
# temi_epoch.py: a larger one leaves the cache, and smaller groups spend their time on calls.
_CPU_GROUP_BYTES = 4 * 2**20
_FLOAT, _HALF, _GIB = 4, 2, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPlan:
    """head_group: G, in [1, H]. tile_rows: T, even, in [2, R]; below R for groups of one head only. keep_logits:
    whether the teacher's logits are kept from the first pass over the heads to the second, as [H, R, C]; else its
    bottleneck rows are, as [H, R, K], and the logits are computed again. work_bytes: of all work tensors together.
    fused: whether a step of all heads is one function for a compiler (`fused.py`)."""

    head_group: int
    tile_rows: int
    keep_logits: bool
    work_bytes: int
    fused: bool = False


def plan_work(batch: int, in_features: int, num_clusters: int, config: TemiConfig, *, device_type: str) -> WorkPlan:
    """The fastest plan for steps of `batch` pairs within `config.memory_budget_gib`.

    Raises ValueError, naming the smallest budget that is enough, where none is.
    """
    rows = 2 * batch
    widest = max(config.hidden, config.bottleneck, num_clusters)
    fitting = max(1, _CPU_GROUP_BYTES // (_FLOAT * rows * widest)) if device_type == "cpu" else config.num_heads
    group = min(config.head_group or fitting, config.num_heads)
    budget = float("inf") if config.memory_budget_gib is None else config.memory_budget_gib * _GIB
    wanted = device_type == "cuda" if config.compile is None else config.compile
    if wanted and config.head_group in (None, config.num_heads):
        size = _fused_bytes(rows, in_features, num_clusters, config)
        if size <= budget:
            known = {"head_group": config.num_heads, "tile_rows": rows, "keep_logits": True}
            return WorkPlan(**known, work_bytes=size, fused=True)
    # To compute the logits twice saves memory where they are wider than the rows that they are made of.
    choices = (True, False) if num_clusters > config.bottleneck else (True,)
    for keep_logits in choices:
        for heads in range(group, 0, -1):
            size = _work_bytes(rows, rows, heads, keep_logits, in_features, num_clusters, config)
            if size <= budget:
                return WorkPlan(head_group=heads, tile_rows=rows, keep_logits=keep_logits, work_bytes=size)
    tile_rows = rows
    while tile_rows > 2:
        tile_rows = max(2, tile_rows // 4 * 2)
        size = _work_bytes(rows, tile_rows, 1, keep_logits, in_features, num_clusters, config)
        if size <= budget:
            return WorkPlan(head_group=1, tile_rows=tile_rows, keep_logits=keep_logits, work_bytes=size)
    smallest = _rounded_up(size / _GIB)
    got = config.memory_budget_gib
    raise ValueError(f"memory_budget_gib must be at least {smallest} for C = {num_clusters}, got {got}")


def peak_bytes(num_images: int, in_features: int, num_clusters: int, config: TemiConfig, *, device_type: str) -> int:
    """The most memory that a fit will take beyond the process itself, in bytes: the features included (float32, also
    where a memory map shared by several processes serves), neighbors, parameters, optimizer and work tensors.

    Process memory on a CPU, device memory on a GPU. Raises ValueError as `plan_work`.
    """
    plan = plan_work(min(config.batch_size, num_images), in_features, num_clusters, config, device_type=device_type)
    # The order and pairs of an epoch (int64).
    data = data_bytes(num_images, in_features, config) + num_images * 8 * 5
    # Student, teacher and AdamW's two moments.
    state = 4 * _FLOAT * config.num_heads * _head_size(in_features, num_clusters, config)
    assignment = assignment_rows(num_clusters) * (2 * config.hidden + 2 * config.bottleneck + num_clusters) * _FLOAT
    return data + state + plan.work_bytes + assignment


def data_bytes(num_images: int, in_features: int, config: TemiConfig) -> int:
    """Of the features and neighbors (int32) on a device, which any number of fits of one process share."""
    return num_images * (_FLOAT * in_features + 4 * config.num_neighbors)


def assignment_rows(num_clusters: int) -> int:
    """Rows that a head is applied to at once when it assigns the images."""
    return max(1, min(ASSIGNMENT_ROWS, _ASSIGNMENT_LOGITS // num_clusters))


def _rounded_up(gib: float) -> str:
    """Three digits, and not less than it is."""
    step = 10.0 ** (math.floor(math.log10(gib)) - 2)
    return f"{math.ceil(gib / step) * step:.3g}"


def _head_size(in_features: int, num_clusters: int, config: TemiConfig) -> int:
    """Parameters of one head."""
    hidden, bottleneck = config.hidden, config.bottleneck
    return (in_features + 1) * hidden + (hidden + 1) * bottleneck + (bottleneck + 1) * num_clusters


def _fused_bytes(rows: int, in_features: int, num_clusters: int, config: TemiConfig) -> int:
    """Of the tensors that a compiled step holds at its widest place, where the gradients begin. Measured on an H200 at
    the paper's shape, C = 400, bfloat16: a fit took 1.126 GiB, of which this and the rest of `peak_bytes` say 1.121."""
    hidden, bottleneck = config.hidden, config.bottleneck
    size = _HALF if config.precision == "bfloat16" else _FLOAT
    # The student's rows before and after GELU; its logits, the teacher's and their gradient; the bottleneck rows.
    wide = size * rows * (2 * hidden + 3 * num_clusters) + _FLOAT * rows * 2 * bottleneck
    # The largest gradient, and the last layers as they are multiplied.
    weights = size * (in_features * hidden + 2 * bottleneck * num_clusters)
    if config.precision == "bfloat16":
        # The other layers of student and teacher as they are multiplied.
        weights += 2 * size * (in_features + bottleneck) * hidden
    return config.num_heads * (wide + weights) + 2 * _FLOAT * rows * in_features


def _work_bytes(
    rows: int, tile_rows: int, group: int, keep_logits: bool, in_features: int, num_clusters: int, config: TemiConfig
) -> int:
    """Of the tensors of `GroupBuffers`, what is kept of the teacher, the rows of a step, and small change."""
    hidden, bottleneck = config.hidden, config.bottleneck
    weight = num_clusters * bottleneck
    tile = tile_rows * num_clusters
    per_head = 2 * rows * hidden + 3 * rows * bottleneck + weight + _head_size(in_features, num_clusters, config)
    per_head += 2 * tile if keep_logits else 3 * tile + weight
    kept = config.num_heads * rows * (num_clusters if keep_logits else bottleneck)
    work = _FLOAT * (group * per_head + kept + 2 * rows * in_features)
    if config.precision == "bfloat16":
        # Both factors of the largest product, rounded, and its result.
        layers = (in_features, hidden), (hidden, bottleneck), (bottleneck, num_clusters)
        work += _HALF * group * max(rows * a + a * b + rows * b for a, b in layers)
    return work
