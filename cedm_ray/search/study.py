"""The study directory: what lies where, and the immutable records that a study is rebuilt from.

    STUDY/
      space.json               the search space as it was settled           driver
      driver.lock  exit.json   who drives; how the last command ended       driver
      images/                  the image set                                driver
      features/KEY/            features of one extractor                    extraction
      neighbors.safetensors    nearest neighbours                           driver
      references/KEY.safetensors  feature statistics of the training set    driver
      references/KEY-rows-R.*  features of a sample of it                   evaluate
      fits/cCCCCC-rR.*         one TEMI fit: its tensors, then its record   the fit
                               (cCCCCC-lower-rR.* with gamma = 1)
      clusterings/NAME.parquet any clustering for people and other programs, written once; NAME.html shows it
      candidates.json          the C to train, in their order               driver
      trials/NAME/reports/     one record a rung                            the trial
      trials/NAME/checkpoints/ the newest checkpoints                       the trial
      decisions/SSSSSS.json    what was decided on each report, in order    driver
      failures/TASK.json       a task whose attempts all failed, and why    driver
      timings/SSSS.json        wall seconds of a stage                      driver
      best/                    the kept model                               driver
      evaluations/NAME-DIGEST.json  what `evaluate` measured of a model      evaluate
      result.json results.csv report.html samples.png bound.json bound.html driver, made anew from the records
      ray/                     Ray's own files: a cache, never read back

Only this file names them. SSSS are sequence numbers; the order of a study's records is theirs and not a clock's.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cedm_ray import durable
from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.search.results import FEATURES, UNCONDITIONAL, Decision, TrialReport


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecord:
    """One finished TEMI fit. loss: of its best head. seconds: wall time of the fit. lower: made with gamma = 1, for the
    lower end."""

    num_clusters: int
    repeat: int
    num_used: int
    loss: float
    seconds: float
    lower: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A study directory. Making the value touches nothing on disk."""

    path: Path

    # Places --------------------------------------------------------------------------------------------------

    @property
    def lock(self) -> Path:
        return self.path / "driver.lock"

    @property
    def images(self) -> Path:
        return self.path / "images"

    def features(self, key: str) -> Path:
        return self.path / "features" / key[:16]

    @property
    def neighbors(self) -> Path:
        return self.path / "neighbors.safetensors"

    @property
    def references(self) -> Path:
        return self.path / "references"

    def reference(self, key: str) -> Path:
        return self.references / f"{key[:16]}.safetensors"

    def fit(self, name: str) -> Path:
        """The tensors of a fit: `labels` int32 [N] and the best head's parameters."""
        return self.path / "fits" / f"{name}.safetensors"

    def clustering(self, name: str) -> Path:
        """An assignment with its provenance; `NAME.html` beside it is its page."""
        return self.path / "clusterings" / f"{name}.parquet"

    def checkpoints(self, trial: str) -> Path:
        return self.path / "trials" / trial / "checkpoints"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def showcase(self) -> Path:
        """Images for the report: training images and samples of some clusters of the best model."""
        return self.path / "best" / "showcase.safetensors"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def bound_page(self) -> Path:
        return self.path / "bound.html"

    @property
    def table(self) -> Path:
        return self.path / "results.csv"

    @property
    def sample_grid(self) -> Path:
        return self.path / "samples.png"

    # The space -----------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a study was ever begun here."""
        return (self.path / "space.json").exists()

    def settle(self, settled: Mapping[str, Any]) -> None:
        """Fix the configuration of a new study, or check that a resumed one is given the same.

        settled: SearchSpace.settled(). Raises ConfigurationError naming every difference.
        """
        path = self.path / "space.json"
        if not path.exists():
            durable.write_record(path, settled)
            return
        differences = list(_differences(durable.read_record(path), settled, ""))
        if differences:
            mend = "give the space that the study was begun with, or another --study for the new one"
            raise ConfigurationError(f"{self.path} was begun with another space: " + "; ".join(differences), mend=mend)

    def settled(self) -> dict[str, Any]:
        """The configuration that the study was begun with. Raises ConfigurationError where there is no study."""
        try:
            return durable.read_record(self.path / "space.json")
        except (FileNotFoundError, NotADirectoryError):
            mend = "give the folder of a study; cedm-ray search SPACE --study FOLDER begins one"
            raise ConfigurationError(f"{self.path.absolute()} is not a study", mend=mend) from None

    # Records -------------------------------------------------------------------------------------------------

    def write_fit(self, fit: FitRecord, name: str, tensors: Mapping[str, np.ndarray], provenance: Mapping) -> None:
        """Keep a fit: its tensors first, then the record that acknowledges them."""
        durable.write_tensors(self.fit(name), tensors, provenance)
        durable.write_record(self.path / "fits" / f"{name}.json", dataclasses.asdict(fit))

    def fits(self) -> dict[str, FitRecord]:
        """Every finished fit by its name."""
        return {path.stem: FitRecord(**durable.read_record(path)) for path in _listing(self.path / "fits", "*.json")}

    def write_candidates(self, order: Sequence[int]) -> None:
        """Record the C to train, in the order in which they are started."""
        durable.write_record(self.path / "candidates.json", {"order": list(order)})

    def write_report(self, report: TrialReport) -> None:
        folder = self.path / "trials" / report.trial / "reports"
        durable.write_record(folder / f"{report.rung:03d}.json", dataclasses.asdict(report))

    def reports(self, trial: str) -> list[TrialReport]:
        """A trial's reports by rung."""
        folder = self.path / "trials" / trial / "reports"
        return [TrialReport(**durable.read_record(path)) for path in _listing(folder, "*.json")]

    def trials(self) -> list[str]:
        """Names of all trials that left anything."""
        found = [path.name for path in _listing(self.path / "trials", "*") if path.is_dir()]
        return [name for name in found if re.fullmatch(rf"{UNCONDITIONAL}|{FEATURES}|c\d{{5,}}", name)]

    def write_decision(self, decision: Decision) -> None:
        path = self.path / "decisions" / f"{decision.sequence:06d}.json"
        durable.write_record(path, dataclasses.asdict(decision))

    def decisions(self) -> list[Decision]:
        """All decisions in the order in which they were taken. Raises IntegrityError where one is missing."""
        return [Decision(**record) for record in self._sequence("decisions")]

    def write_failure(self, task: str, text: str) -> None:
        """Record that all attempts at a task failed, with the text of the last error."""
        durable.write_record(self.path / "failures" / f"{task}.json", {"text": text})

    def failures(self) -> dict[str, str]:
        """The error text of every task that failed for good, by its name."""
        found = _listing(self.path / "failures", "*.json")
        return {path.stem: durable.read_record(path)["text"] for path in found}

    def how_to_retry(self, task: str) -> str:
        """What the user does to have a task that failed tried again."""
        return f"mend the cause, then remove {self.path / 'failures' / task}.json and run the command again"

    def write_evaluation(self, name: str, key: str, evaluation: Mapping[str, Any]) -> None:
        """Record what was measured of the model NAME. key: digest of what was asked for."""
        durable.write_record(self._evaluation(name, key), evaluation)

    def evaluation(self, name: str, key: str) -> dict[str, Any] | None:
        """What was measured when the same was asked before; None where it never was."""
        path = self._evaluation(name, key)
        return durable.read_record(path) if path.exists() else None

    def _evaluation(self, name: str, key: str) -> Path:
        return self.path / "evaluations" / f"{name}-{key[:16]}.json"

    def write_timing(self, stage: str, seconds: float) -> None:
        """Record the wall seconds that a stage took in one run."""
        self._append("timings", 4, {"stage": stage, "seconds": round(seconds, 3)})

    def stage_s(self) -> dict[str, float]:
        """Wall seconds by stage, summed over all runs, in the order in which the stages were first timed."""
        total: dict[str, float] = {}
        for record in self._sequence("timings"):
            total[record["stage"]] = total.get(record["stage"], 0.0) + record["seconds"]
        return total

    def write_exit(self, code: int, text: str) -> None:
        """State how the last command ended, because a job runner may flatten the exit code."""
        durable.replace_record(self.path / "exit.json", {"code": code, "text": text})

    def write_result(self, result: Mapping[str, Any]) -> None:
        """The result for other programs; made anew from the records by every command that ends."""
        durable.replace_record(self.path / "result.json", result)

    def write_bound(self, bound: Mapping[str, Any]) -> None:
        """Both ends of C for other programs; made anew from the records."""
        durable.replace_record(self.path / "bound.json", bound)

    def _append(self, folder: str, digits: int, record: Mapping[str, Any]) -> None:
        number = len(_listing(self.path / folder, "*.json")) + 1
        durable.write_record(self.path / folder / f"{number:0{digits}d}.json", record)

    def _sequence(self, folder: str) -> list[dict[str, Any]]:
        paths = _listing(self.path / folder, "*.json")
        for number, path in enumerate(paths, start=1):
            if int(path.stem) != number:
                raise IntegrityError(f"{self.path / folder}: record {number} is missing before {path.name}")
        return [durable.read_record(path) for path in paths]


def _listing(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not durable.is_temporary(path))


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key} was {old!r} and is {new!r}"
