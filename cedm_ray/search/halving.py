"""Successive halving with a field that is known (Jamieson & Talwalkar 2016, arXiv 1502.07943), decided as early as can
be: the arithmetic of one rung, pure.

n trials begin, and floor(n / reduction_factor^(r + 1)) of them go on at rung r, at least one. Whoever reports waits
until its place is certain: it is stopped once as many as go on are better, and goes on once no more than that can come
to be. So the outcome depends on what the trials measured and not on who came first, whatever the cluster.
"""

import math
from collections.abc import Collection
from typing import Literal


def kept(num_trials: int, rung: int, reduction_factor: float, least: int = 1) -> int:
    """How many of `num_trials` go on at a rung (from 0): at least `least`, and not more than there are."""
    # A billionth for quotients that are whole: 9 / 3^2 must not become 0.
    share = math.floor(num_trials / reduction_factor ** (rung + 1) + 1e-9)
    return min(num_trials, max(least, 1, share))


def outstanding(
    members: Collection[str],
    rung: int,
    arrived: list[Collection[str]],
    passed: list[Collection[str]],
    out: Collection[str],
    room: int,
) -> int:
    """How many of a field's trials may still come to a rung.

    members: the field. arrived, passed: by rung, who reported a distance there and who went on from it. out: who
    ended, wherever. room: how many go on at the rung before; of no meaning at the first.
    """
    coming = [name for name in members if name not in arrived[rung] and name not in out]
    if rung == 0:
        return len(coming)
    sure = sum(name in passed[rung - 1] for name in coming)
    gone_on = sum(name in passed[rung - 1] for name in members)
    return sure + min(len(coming) - sure, max(0, room - gone_on))


def verdict(better: int, missing: int, keep: int) -> Literal["running", "stopped", "waiting"]:
    """What becomes of a trial. better: how many are better than it; missing: how many may still come; keep: how many
    go on."""
    if better >= keep:
        return "stopped"
    return "running" if better + missing < keep else "waiting"
