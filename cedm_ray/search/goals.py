"""What a search consists of: fits and trials as tasks, and how far one command goes."""

from dataclasses import dataclass
from typing import Literal

from cedm_ray.search.results import FEATURES, trial_name


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTask:
    """Fit TEMI with `num_clusters` clusters; repeat: which of the repeated fits, from 0. lower: with gamma = 1, for the
    lower end."""

    num_clusters: int
    repeat: int
    lower: bool = False

    @property
    def name(self) -> str:
        return f"{trial_name(self.num_clusters)}{'-lower' if self.lower else ''}-r{self.repeat}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train the C-EDM conditioned on `num_clusters` clusters; None: the unconditional baseline, or with `features` the
    one conditioned on the images' feature vectors.

    seed: above 0 for a finalist that is trained again. final: train the winner on to its final budget.
    """

    num_clusters: int | None
    features: bool = False
    seed: int = 0
    final: bool = False

    def __post_init__(self) -> None:
        if self.features and self.num_clusters is not None:
            raise ValueError(f"num_clusters must be None for a trial on features, got {self.num_clusters}")

    @property
    def trial(self) -> str:
        """The name of the trial that it trains."""
        return FEATURES if self.features else trial_name(self.num_clusters, self.seed)

    @property
    def name(self) -> str:
        return f"{self.trial}-final" if self.final else self.trial


Task = FitTask | TrainTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """How far a driver goes. bound: stop when C_max and the lower end are known. search: to C_V. trial: train one C
    (None: the baseline, or with `features` the one on feature vectors) through the rungs, whatever the bound says; a
    rung stops it where the study's other trials are better. fits: only fit every C of `sizes`, as often as the bound's
    repeats."""

    kind: Literal["bound", "search", "trial", "fits"]
    num_clusters: int | None = None
    features: bool = False
    sizes: tuple[int, ...] = ()

    @property
    def trial(self) -> TrainTask:
        """The one trial of the kind `trial`."""
        return TrainTask(num_clusters=self.num_clusters, features=self.features)
