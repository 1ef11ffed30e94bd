"""What a search consists of: fits and trials as tasks, and how far one command goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cedm_ray.config import digest
from cedm_ray.errors import IntegrityError
from cedm_ray.search.results import FEATURES, read_trial_name, trial_name
from cedm_ray.search.settings import Settings, frozen, of_clusterings


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTask:
    """Fit TEMI with `num_clusters` clusters; repeat: which of the repeated fits, from 0. lower: with gamma = 1, for the
    lower end. changes: what its clustering settings are otherwise than the space's."""

    num_clusters: int
    repeat: int
    lower: bool = False
    changes: Settings = ()

    @property
    def name(self) -> str:
        """Of a fit with changes it holds their digest, so that no fit is taken for another."""
        kind = "-lower" if self.lower else ""
        if self.changes:
            kind += f"-{digest([list(change) for change in self.changes])[:8]}"
        return f"{trial_name(self.num_clusters)}{kind}-r{self.repeat}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train the C-EDM conditioned on `num_clusters` clusters; None: the unconditional baseline, or with `features` the
    one conditioned on the images' feature vectors.

    seed: above 0 for a finalist that is trained again. final: train the winner on to its final budget. proposal: number
    of the proposal that is tried, 0 for none. changes: what its settings are otherwise than the space's.
    """

    num_clusters: int | None
    features: bool = False
    seed: int = 0
    final: bool = False
    proposal: int = 0
    changes: Settings = ()

    def __post_init__(self) -> None:
        if self.features and self.num_clusters is not None:
            raise ValueError(f"num_clusters must be None for a trial on features, got {self.num_clusters}")

    @property
    def trial(self) -> str:
        """The name of the trial that it trains."""
        return FEATURES if self.features else trial_name(self.num_clusters, self.seed, self.proposal)

    @property
    def fit(self) -> FitTask | None:
        """The fit whose clusters it is conditioned on; None without clusters."""
        if self.num_clusters is None:
            return None
        return FitTask(num_clusters=self.num_clusters, repeat=0, changes=of_clusterings(self.changes))

    @property
    def name(self) -> str:
        return f"{self.trial}-final" if self.final else self.trial


Task = FitTask | TrainTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One trial of a search for more than C. number: from 1, in the order in which they are started. settings: every
    setting that is searched, with its value here. changes: those of them that the space has otherwise."""

    number: int
    num_clusters: int
    settings: Settings
    changes: Settings

    @property
    def task(self) -> TrainTask:
        """The trial."""
        return TrainTask(num_clusters=self.num_clusters, proposal=self.number, changes=self.changes)

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "num_clusters": self.num_clusters,
            "settings": dict(self.settings),
            "changes": dict(self.changes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Proposal":
        return cls(
            number=value["number"],
            num_clusters=value["num_clusters"],
            settings=frozen(value["settings"]),
            changes=frozen(value["changes"]),
        )


def task_of(trial: str, proposals: Sequence[Proposal]) -> TrainTask:
    """The task whose trial has that name. proposals: all that are on record, by their numbers. Raises ValueError for a
    name of no trial, IntegrityError for one of a proposal that is not among them."""
    num_clusters, seed, number = read_trial_name(trial)
    if number > len(proposals):
        raise IntegrityError(
            f"{trial} tries proposal {number}, and {len(proposals)} are on record",
            mend="restore the study's proposals from a backup, or begin another study",
        )
    changes = proposals[number - 1].changes if number else ()
    features = trial == FEATURES
    return TrainTask(num_clusters=num_clusters, features=features, seed=seed, proposal=number, changes=changes)


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
