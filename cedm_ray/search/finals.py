"""After the search: more seeds for the finalists, and the winner's last stretch."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import Field

from cedm_ray.config import Config


class FinalsConfig(Config):
    """What becomes of the best trials once all C are done.

    finalists: how many C may be, those with the lowest distances at the full budget; so many are at least kept at every
    rung under rungs.rule halving. seeds: how often each is trained in all, with other weights, order and noise and the
    same clusters; the C with the lowest mean distance wins. budget_kimg: thousands of images that the winner is trained
    on to, from its checkpoint; None = it stays as it is. evaluate: measure the kept model at the end as `cedm-ray
    evaluate` does, on 3 sets of evaluation.final_samples images.
    """

    finalists: int = Field(default=1, ge=1)
    seeds: int = Field(default=1, ge=1)
    budget_kimg: float | None = Field(default=None, gt=0)
    evaluate: bool = False


Candidate = TypeVar("Candidate")
"""A C, or a C with the number of a proposal: anything that has an order."""


def finalists(distances: Mapping[Candidate, float], count: int) -> tuple[Candidate, ...]:
    """The `count` candidates with the lowest distances at the full budget, the best first; of equals the smaller C.

    distances: by candidate, of the trials that came there.
    """
    return tuple(sorted(distances, key=lambda c: (distances[c], c))[:count])


def winner(
    distances: Mapping[Candidate, Mapping[int, float]], order: Sequence[Candidate]
) -> tuple[Candidate, int] | None:
    """(Candidate, seed) of the model to keep: the candidate with the lowest mean over its seeds, and of these the best;
    None of none.

    distances: by candidate and then by seed, at the full budget; those without any are left out. order: the finalists,
    the best first, which decides between equal means.
    """
    found = [c for c in order if distances.get(c)]
    if not found:
        return None
    best = min(found, key=lambda c: sum(distances[c].values()) / len(distances[c]))
    return best, min(distances[best], key=lambda seed: (distances[best][seed], seed))
