"""The labels of an EDM data set: `dataset.json` at the top of a folder or a zip.

It is `{"labels": [["00000/img00000000.png", 6], ...]}`, one pair for every image; `{"labels": null}` says that there
are none. (T. Karras et al., "Elucidating the design space of diffusion-based generative models", 2022: the layout of
their data sets.)
"""

import json
from collections.abc import Sequence

import numpy as np

from cedm_ray.data.decoding import printable
from cedm_ray.data.entries import check_label
from cedm_ray.errors import InputDataError

DATASET_JSON = "dataset.json"
_MEND = "repair dataset.json, or take it away: a search does without labels"


def parse_labels(text: bytes, names: Sequence[str], *, others: Sequence[str], where: str) -> np.ndarray | None:
    """The labels of `names`, int32 [n]; None where the file says that there are none.

    others: names of images that are there and were refused, which may have labels too. where: the file, for messages.
    Raises InputDataError naming the first entry that breaks a rule, or the first image without a label.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputDataError(f"{printable(where)} is not JSON: {printable(str(error))}", mend=_MEND) from None
    if not isinstance(content, dict) or "labels" not in content:
        raise InputDataError(f'{printable(where)} has no "labels"', mend=_MEND)
    pairs = content["labels"]
    if pairs is None:
        return None
    if not isinstance(pairs, list):
        raise InputDataError(f'{printable(where)}: "labels" must be a list of [name, label] or null', mend=_MEND)
    known = {*names, *others}
    labels: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        entry = f"{printable(where)}: entry {number}"
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise InputDataError(f"{entry} must be [name, label], got {printable(json.dumps(pair)[:80])}", mend=_MEND)
        name, label = pair
        if name not in known:
            raise InputDataError(f"{entry} names {printable(name)}, which is not there", mend=_MEND)
        if name in labels:
            raise InputDataError(f"{entry} names {printable(name)} for the second time", mend=_MEND)
        labels[name] = check_label(label, f"{entry} ({printable(name)})")
    for name in names:
        if name not in labels:
            raise InputDataError(
                f"{printable(where)} has {len(pairs):,} labels for {len(known):,} images; the first image without one "
                f"is {printable(name)}",
                mend=_MEND,
            )
    return np.array([labels[name] for name in names], dtype=np.int32)
