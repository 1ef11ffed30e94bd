"""The study directory: what lies where, and the immutable records that a study is rebuilt from.

    STUDY/
      space.json               the search space as it was settled           driver
      driver.lock  exit.json   who drives; how the last command ended       driver
      stop.json                which driver was last asked to stop          stop
      images/                  the image set                                driver
      sources/SSSS.json        its source after files were copied or fetched anew: the same contents  driver
      features/KEY/            features of one extractor                    extraction
      neighbors.safetensors    nearest neighbours                           driver
      neighbors-DIGEST.safetensors  in the features of another extractor    driver
      references/KEY.safetensors  feature statistics of the training set    driver
      references/KEY-rows-R.*  features of a sample of it                   evaluate
      fits/cCCCCC-rR.*         one TEMI fit: its tensors, then its record   the fit
                               (cCCCCC-lower-rR.* with gamma = 1)
      clusterings/NAME.parquet any clustering for people and other programs, written once; NAME.html shows it
      candidates.json          the C to train, in their order               driver
      candidates-WWW.json      those of the W-th refinement, from 1         driver
      proposals/NNNN.json      trials of a search for more than C, from 1   driver
      trials/NAME/reports/     one record a rung                            the trial
      trials/NAME/checkpoints/ the newest checkpoints                       the trial
      decisions/SSSSSS.json    what was decided on each report, in order    driver
      failures/TASK.json       a task whose attempts all failed, and why    driver
      timings/SSSS.json        wall seconds of a stage                      driver
      best/                    the kept model                               driver
      evaluations/NAME-DIGEST.json  what `evaluate` measured of a model      evaluate
      result.json results.csv report.html samples.png bound.json bound.html driver, made anew from the records
      tensorboard/NAME/        curves of a trial or a fit, for people       the task; the driver
      ray/                     Ray's own files: a cache, never read back

Only this file names them. SSSS are sequence numbers; the order of a study's records is theirs and not a clock's.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cedm_ray import durable
from cedm_ray.config import digest
from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.lock import refuse_if_overtaken
from cedm_ray.search.goals import FitTask, Proposal
from cedm_ray.search.results import TRIAL_PATTERN, Decision, TrialReport
from cedm_ray.search.settings import frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecord:
    """One finished TEMI fit. loss: of its best head. seconds: wall time of the fit. lower: made with gamma = 1, for the
    lower end. changes: what its clustering settings were otherwise than the space's, by their paths."""

    num_clusters: int
    repeat: int
    num_used: int
    loss: float
    seconds: float
    lower: bool = False
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def task(self) -> FitTask:
        """What was asked for."""
        changes = frozen(self.changes)
        return FitTask(num_clusters=self.num_clusters, repeat=self.repeat, lower=self.lower, changes=changes)


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

    def features_kept(self) -> list[Path]:
        """The folders of all finished features, each named after its key."""
        return [path.parent for path in _listing(self.path / "features", "*/features.json")]

    @property
    def neighbors(self) -> Path:
        return self.path / "neighbors.safetensors"

    def neighbors_in(self, extractor: str | None) -> Path:
        """Neighbors in the features of another extractor that is searched; None = the space's own."""
        return self.neighbors if extractor is None else self.path / f"neighbors-{digest([extractor])[:8]}.safetensors"

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

    def tensorboard(self, name: str) -> Path:
        """TensorBoard's run of a trial or a fit: made from what the task says and from the records, and none itself."""
        return self.path / "tensorboard" / name

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

    def settle(self, settled: Mapping[str, Any], completed: Callable[[dict], dict] | None = None) -> None:
        """Fix the configuration of a new study, or check that a resumed one is given the same.

        Of what a study has nothing of yet the settings may still change: whoever got a size or a detector wrong mends
        it and gives the same command again. Arguments and errors as `check_settled`.
        """
        path = self.path / "space.json"
        if not self.exists:
            durable.write_record(path, settled)
        elif self.check_settled(settled, completed):
            durable.replace_record(path, settled)

    def check_settled(
        self, settled: Mapping[str, Any], completed: Callable[[dict], dict] | None = None
    ) -> tuple[str, ...]:
        """The settings that are others than those on record, by their paths, where nothing was made by these yet.

        settled: SearchSpace.settled(). completed: SearchSpace.completed, so that a study which was begun before there
        was some key goes on with its default; None = what is on record has all keys. Raises ConfigurationError naming
        every difference in what something was made by.
        """
        begun = self.settled()
        found = dict(_differences(completed(begun) if completed is not None else begun, settled, ""))
        made = tuple(self._made_by())
        fixed = [text for key, text in found.items() if f"{key}.".startswith(made)]
        if fixed:
            mend = "give the space that the study was begun with, or another --study for the new one"
            raise ConfigurationError(f"{self.path} was begun with another space: " + "; ".join(fixed), mend=mend)
        return tuple(found)

    def _made_by(self) -> Iterator[str]:
        """What the paths of settings begin with that something in the study was made by."""
        if (self.images / durable.MANIFEST).exists():
            yield "images."
        if _listing(self.path, "neighbors*.safetensors"):
            yield "clustering.num_neighbors."
        # Tasks may have begun as soon as there is a folder of Ray's.
        if self.ray.exists() or any(_listing(self.path, f"{name}/*") for name in ("fits", "trials", "clusterings")):
            yield ""

    def settled(self) -> dict[str, Any]:
        """The configuration that the study was begun with. Raises ConfigurationError where there is no study."""
        try:
            return durable.read_record(self.path / "space.json")
        except (FileNotFoundError, NotADirectoryError):
            mend = "give the folder of a study; cedm-ray search SPACE --study FOLDER begins one"
            raise ConfigurationError(f"{self.path.absolute()} is not a study", mend=mend) from None

    # Who drives ----------------------------------------------------------------------------------------------

    def confirm(self) -> None:
        """Raise LockedError where this process drives the study, as far as it knows, and another does by now. Every
        record of a driver asks this before it is written; a task's records are protected by never changing."""
        refuse_if_overtaken(self.lock)

    def ask_to_stop(self, mark: str) -> None:
        """Ask the driver of that mark (`Owner.mark`) to end, wherever it runs. What is asked of one holds for no other,
        so a request that nobody took up stops nobody later."""
        durable.replace_record(self.path / "stop.json", {"mark": mark})

    def asked_to_stop(self, mark: str) -> bool:
        """Whether the driver of that mark was asked to end."""
        path = self.path / "stop.json"
        return path.exists() and durable.read_record(path)["mark"] == mark

    # Records -------------------------------------------------------------------------------------------------

    def write_fit(self, fit: FitRecord, name: str, tensors: Mapping[str, np.ndarray], provenance: Mapping) -> None:
        """Keep a fit: its tensors first, then the record that acknowledges them."""
        durable.write_tensors(self.fit(name), tensors, provenance)
        durable.write_record(self.path / "fits" / f"{name}.json", dataclasses.asdict(fit))

    def fits(self) -> dict[str, FitRecord]:
        """Every finished fit by its name."""
        return {path.stem: FitRecord(**durable.read_record(path)) for path in _listing(self.path / "fits", "*.json")}

    def write_candidates(self, order: Sequence[int], wave: int = 0) -> None:
        """Record the C to train, in the order in which they are started. wave: above 0 for a refinement."""
        self.confirm()
        name = f"candidates-{wave:03d}.json" if wave else "candidates.json"
        durable.write_record(self.path / name, {"order": list(order)})

    def refinements(self) -> list[tuple[int, ...]]:
        """The C of every refinement so far."""
        return [tuple(durable.read_record(path)["order"]) for path in _listing(self.path, "candidates-*.json")]

    def candidates(self) -> tuple[int, ...]:
        """The C to train in the order in which they are started; empty while that is not on record."""
        path = self.path / "candidates.json"
        return tuple(durable.read_record(path)["order"]) if path.exists() else ()

    def write_proposal(self, proposal: Proposal) -> None:
        """Record a proposed trial, before it is started."""
        self.confirm()
        durable.write_record(self.path / "proposals" / f"{proposal.number:04d}.json", proposal.to_json())

    def proposals(self) -> list[Proposal]:
        """All proposed trials by their numbers. Raises IntegrityError where one is missing."""
        return [Proposal.from_json(record) for record in self._sequence("proposals")]

    def write_report(self, report: TrialReport) -> None:
        folder = self.path / "trials" / report.trial / "reports"
        durable.write_record(folder / f"{report.rung:03d}.json", dataclasses.asdict(report))

    def reports(self, trial: str) -> list[TrialReport]:
        """A trial's reports by rung."""
        folder = self.path / "trials" / trial / "reports"
        return [TrialReport(**durable.read_record(path)) for path in _listing(folder, "*.json")]

    def begin_trial(self, trial: str) -> None:
        """Have it on record that a trial is under way. Raises StorageError where nothing could be kept of it."""
        durable.check_writable(self.checkpoints(trial))

    def has_begun(self, trial: str) -> bool:
        """Whether a trial was ever under way."""
        return self.checkpoints(trial).parent.exists()

    def images_saved(self, trial: str) -> int:
        """Images seen at a trial's newest finished checkpoint, whose content is not checked here; 0 without any."""
        found = _listing(self.checkpoints(trial), f"*/{durable.MANIFEST}")
        return max((int(path.parent.name) for path in found), default=0)

    def trials(self) -> list[str]:
        """Names of all trials that left anything."""
        found = [path.name for path in _listing(self.path / "trials", "*") if path.is_dir()]
        return [name for name in found if TRIAL_PATTERN.fullmatch(name)]

    def write_decision(self, decision: Decision) -> None:
        self.confirm()
        path = self.path / "decisions" / f"{decision.sequence:06d}.json"
        durable.write_record(path, dataclasses.asdict(decision))

    def decisions(self) -> list[Decision]:
        """All decisions in the order in which they were taken. Raises IntegrityError where one is missing."""
        return [Decision(**record) for record in self._sequence("decisions")]

    def write_failure(self, task: str, text: str) -> None:
        """Record that all attempts at a task failed, with the text of the last error."""
        self.confirm()
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

    def evaluations(self, name: str) -> list[dict[str, Any]]:
        """All that was measured of the model NAME, whatever was asked."""
        found = _listing(self.path / "evaluations", f"{name}-*.json")
        return [record for path in found if (record := durable.read_record(path))["name"] == name]

    def _evaluation(self, name: str, key: str) -> Path:
        return self.path / "evaluations" / f"{name}-{key[:16]}.json"

    def write_same_source(self, fingerprint: str) -> None:
        """Record that a source of this fingerprint, which is not the image set's, was read and holds its images."""
        self.confirm()
        self._append("sources", 4, {"fingerprint": fingerprint})

    def same_sources(self) -> set[str]:
        """The fingerprints that `write_same_source` recorded."""
        return {record["fingerprint"] for record in self._sequence("sources")}

    def write_timing(self, stage: str, seconds: float) -> None:
        """Record the wall seconds that a stage took in one run."""
        self.confirm()
        self._append("timings", 4, {"stage": stage, "seconds": round(seconds, 3)})

    def stage_s(self) -> dict[str, float]:
        """Wall seconds by stage, summed over all runs, in the order in which the stages were first timed."""
        total: dict[str, float] = {}
        for record in self._sequence("timings"):
            total[record["stage"]] = total.get(record["stage"], 0.0) + record["seconds"]
        return total

    def write_exit(self, code: int, text: str) -> None:
        """State how the last command ended, because a job runner may flatten the exit code."""
        self.confirm()
        durable.replace_record(self.path / "exit.json", {"code": code, "text": text})

    def read_exit(self) -> dict[str, Any] | None:
        """How the last command that drove the study ended, `code` and `text`; None where none has ended yet."""
        path = self.path / "exit.json"
        return durable.read_record(path) if path.exists() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """The result for other programs; made anew from the records by every command that ends."""
        durable.replace_record(self.path / "result.json", result)

    def write_bound(self, bound: Mapping[str, Any]) -> None:
        """Both ends of C for other programs; made anew from the records."""
        durable.replace_record(self.path / "bound.json", bound)

    @property
    def bound_is_known(self) -> bool:
        """Whether a command came to the end of the search for the bound and wrote down what follows from it."""
        return (self.path / "bound.json").exists() or (self.path / "candidates.json").exists()

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


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, str]]:
    """(Path, what it was and is) of all settings that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, f"{key} was {old!r} and is {new!r}"
