"""What a search tells Prometheus: the right numbers under the names that the Grafana file draws."""

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from cedm_ray.distributed import metrics
from cedm_ray.distributed.metrics import INSTRUMENTS, PHASES, DriverMetrics, StudyMetrics
from cedm_ray.search.goals import FitTask, Goal, TrainTask
from cedm_ray.search.packing import Resources
from cedm_ray.search.results import Decision, TrialReport
from cedm_ray.search.study import FitRecord

ROOT = Path(__file__).parents[2]
GRAFANA = json.loads((ROOT / "docs/grafana.json").read_text(encoding="utf-8"))


def queries() -> list[str]:
    """Every PromQL text of the dashboard: of its panels and of its variables."""
    panels = [target["expr"] for panel in GRAFANA["panels"] for target in panel["targets"]]
    return panels + [v["definition"] for v in GRAFANA["templating"]["list"] if v["type"] == "query"]


def test_the_dashboard_draws_every_metric_and_no_other():
    drawn = set(re.findall(r"ray_\w+", " ".join(queries())))
    assert drawn == {instrument.exported for instrument in INSTRUMENTS.values()}


def test_the_page_on_watching_names_every_metric_with_its_tags():
    page = (ROOT / "docs/watching.md").read_text(encoding="utf-8")
    told = {}
    for names, tags in re.findall(r"^\| ((?:`ray_cedm_\w+`(?:, )?)+) \| ([\w, ]+) \|", page, flags=re.MULTILINE):
        told |= dict.fromkeys(re.findall(r"ray_\w+", names), tuple(tags.split(", ")))
    assert told == {instrument.exported: instrument.tags for instrument in INSTRUMENTS.values()}


def test_the_dashboard_asks_only_for_tags_that_its_metrics_have():
    tags = {instrument.exported: set(instrument.tags) for instrument in INSTRUMENTS.values()}
    for query in queries():
        for name, selector in re.findall(r"(ray_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=~", selector)) <= tags[name], query
    for panel in GRAFANA["panels"]:
        for target in panel["targets"]:
            (name, *_) = re.findall(r"ray_\w+", target["expr"])
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= tags[name], target


def test_the_dashboards_panels_have_places_of_their_own_on_its_24_columns():
    taken = set()
    for panel in GRAFANA["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])


class FakeMetric:
    """Keeps what it is told as Ray's does: by its tags, all of which must be given."""

    told: dict[tuple, float]

    def __init__(self, name, text, tags):
        self.name, self.tags = name, tags

    def set(self, value, tags):
        assert set(tags) == set(self.tags)
        if value is not None:
            assert isinstance(value, float | int)
            FakeMetric.told[(self.name, *(tags[tag] for tag in self.tags))] = value

    def inc(self, value, tags):
        key = (self.name, *(tags[tag] for tag in self.tags))
        FakeMetric.told[key] = FakeMetric.told.get(key, 0) + value


@pytest.fixture
def told(monkeypatch):
    FakeMetric.told = {}
    monkeypatch.setattr(metrics, "ray_metrics", SimpleNamespace(Gauge=FakeMetric, Counter=FakeMetric))
    return FakeMetric.told


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def report(trial, rung, distance):
    return TrialReport(
        trial=trial,
        rung=rung,
        images_seen=500 * (rung + 1),
        distance=distance,
        num_samples=8,
        loss=0.5,
        train_s=1.0,
        evaluate_s=1.0,
        skipped_steps=0,
        collapsed=False,
    )


def decision(sequence, trial, status):
    fields = {"rung": 0, "images_seen": 500, "cutoff": None, "reason": ""}
    return Decision(sequence=sequence, trial=trial, status=status, **fields)


def fit(num_clusters, num_used):
    return FitRecord(num_clusters=num_clusters, repeat=0, num_used=num_used, loss=1.0, seconds=1.0)


class Judged:
    """The judge as far as the metrics ask it."""

    def __init__(self):
        self.decisions = []

    @property
    def newest(self):
        return {decision.trial: decision for decision in self.decisions}


class Search:
    """A driver whose tasks are begun and ended by hand, and its metrics."""

    def __init__(self, study, space, kind="search"):
        self.study, self.space, self.goal = study, space, Goal(kind=kind)
        self.live, self.over = {}, False
        self.asha = Judged()
        self.agenda = SimpleNamespace(bound=None)
        self.metrics = DriverMetrics(self, {}, StudyMetrics("s"))

    def begin(self, task, gpus):
        trial = SimpleNamespace(trial_id=task.name, config={"gpus": gpus, "num_clusters": task.num_clusters})
        self.metrics.names[task.name] = task.name
        self.live[task.name] = (task, Resources(cpus=1, gpus=gpus))
        self.metrics.on_trial_start(1, [], trial)
        return trial

    def end(self, trial, status=None):
        if status is not None:
            self.asha.decisions.append(decision(len(self.asha.decisions) + 1, trial.trial_id, status))
        del self.live[trial.trial_id]
        self.metrics.on_trial_complete(1, [], trial)


def test_a_trial_is_told_of_as_it_goes(study, space, told, clock):
    search = Search(study, space)
    trial = search.begin(TrainTask(num_clusters=100), 1.0)
    search.metrics.on_trial_result(1, [], trial, {"images_seen": 250, "loss": 0.7, "images_per_s": 90.0})
    assert told["cedm_images_seen", "s", "c00100"] == 250
    assert told["cedm_images_per_second", "s", "c00100"] == 90
    assert told["cedm_loss", "s", "c00100"] == pytest.approx(0.7)
    assert (told["cedm_num_clusters", "s", "c00100"], told["cedm_gpus", "s", "c00100"]) == (100, 1)
    assert ("cedm_distance", "s", "c00100") not in told
    search.metrics.on_trial_result(1, [], trial, {"images_seen": 500, "rung": 0, "distance": 3.5, "loss": None})
    assert (told["cedm_rung", "s", "c00100"], told["cedm_distance", "s", "c00100"]) == (0, 3.5)
    assert told["cedm_trials", "s", "running"] == 1
    search.end(trial, "completed")
    assert (told["cedm_images_per_second", "s", "c00100"], told["cedm_gpus", "s", "c00100"]) == (0, 0)
    assert (told["cedm_trials", "s", "running"], told["cedm_trials", "s", "completed"]) == (0, 1)
    assert told["cedm_images_seen", "s", "c00100"] == 500


def test_every_gauge_is_told_again_as_it_is_now_and_no_counter(study, space, told, clock):
    search = Search(study, space)
    trial = search.begin(TrainTask(num_clusters=10), 1.0)
    for images in (100, 200):
        search.metrics.on_trial_result(1, [], trial, {"images_seen": images, "loss": 0.5})
    clock.now += 10
    search.metrics.on_step_end(1, [])
    before = dict(told)
    told.clear()
    search.metrics.metrics.tell_again()
    assert before.pop(("cedm_gpu_seconds", "s")) == 10
    assert told == before
    assert told["cedm_images_seen", "s", "c00010"] == 200


def test_gauges_are_told_for_as_long_as_there_is_ray(told, monkeypatch):
    waits, connected = [], iter([True, True, False])
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: next(connected))
    monkeypatch.setattr(metrics, "time", SimpleNamespace(sleep=waits.append))
    StudyMetrics("s").keep_telling()
    # Twice within the 20 s after which Ray forgets.
    assert len(waits) == 2
    assert max(waits) <= 10


def test_a_diverged_trial_has_no_distance(study, space, told, clock):
    search = Search(study, space)
    trial = search.begin(TrainTask(num_clusters=None), 1.0)
    search.metrics.on_trial_result(1, [], trial, {"images_seen": 500, "rung": 0, "distance": None, "loss": None})
    assert ("cedm_distance", "s", "unconditional") not in told
    assert told["cedm_num_clusters", "s", "unconditional"] == 0


def test_gpu_seconds_are_those_held_and_wasted_those_of_no_use(study, space, told, clock):
    search = Search(study, space)
    good, bad = (search.begin(TrainTask(num_clusters=n), 2.0) for n in (10, 20))
    useful, given_up = (search.begin(FitTask(num_clusters=n, repeat=0), 0.25) for n in (4, 8))
    clock.now += 10
    search.metrics.on_step_end(1, [])
    assert told["cedm_gpu_seconds", "s"] == 2 * 10 * 2 + 2 * 10 * 0.25
    clock.now += 20
    search.end(good, "completed")
    search.end(bad, "stopped")
    study.write_fit(fit(4, 3), "c00004-r0", {}, {})
    search.end(useful)
    search.end(given_up)
    assert told["cedm_gpu_seconds", "s"] == 2 * 30 * 2 + 2 * 30 * 0.25
    assert told["cedm_wasted_gpu_seconds", "s"] == 30 * 2 + 30 * 0.25
    assert told["cedm_utilization", "s", "c00004-r0", "4"] == 0.75


def test_where_there_is_no_gpu_none_is_counted(study, space, told, clock):
    search = Search(study, space)
    trial = search.begin(TrainTask(num_clusters=10), 0.0)
    clock.now += 10
    search.end(trial, "stopped")
    assert not [key for key in told if "seconds" in key[0]]


def test_a_fit_tells_its_utilization_as_it_goes(study, space, told, clock):
    search = Search(study, space)
    running = search.begin(FitTask(num_clusters=8, repeat=0), 0.25)
    assert told["cedm_fits_running", "s"] == 1
    search.metrics.on_trial_result(1, [], running, {"epoch": 1, "epochs": 4, "loss": 2.0, "num_used": 6})
    assert told["cedm_utilization", "s", "c00008-r0", "8"] == 0.75
    assert told["cedm_alpha", "s"] == space.bound.alpha
    search.end(running)
    assert ("cedm_images_per_second", "s", "c00008-r0") not in told, "a fit has no such pace, also not one of 0"


def test_the_phase_follows_the_bound_and_c_max_is_told_with_it(study, space, told, clock):
    search = Search(study, space)
    phase = {phase for phase in PHASES if told["cedm_phase", "s", phase] == 1}
    assert phase == {"bound"}
    search.agenda.bound = SimpleNamespace(c_max=16)
    search.begin(TrainTask(num_clusters=None), 1.0)
    assert {phase for phase in PHASES if told["cedm_phase", "s", phase] == 1} == {"trials"}
    assert told["cedm_c_max", "s"] == 16
    search.over = True
    search.metrics.on_step_end(2, [])
    assert {phase for phase in PHASES if told["cedm_phase", "s", phase] == 1} == {"over"}


def test_a_resumed_study_tells_what_is_on_record(study, space, told, clock):
    study.write_fit(fit(4, 4), "c00004-r0", {}, {})
    study.write_report(report("c00004", 0, 3.0))
    study.write_report(report("c00004", 1, 2.0))
    study.write_failure("unconditional", "its process died")
    study.write_failure("c00008-r0", "its process died")
    Search(study, space)
    assert told["cedm_distance", "s", "c00004"] == 2.0
    assert (told["cedm_rung", "s", "c00004"], told["cedm_images_seen", "s", "c00004"]) == (1, 1000)
    assert told["cedm_utilization", "s", "c00004-r0", "4"] == 1.0
    # A fit that failed is no failed trial.
    assert told["cedm_trials", "s", "failed"] == 1


def test_a_task_that_never_began_ends_without_a_word(study, space, told, clock):
    search = Search(study, space)
    search.metrics.names["x"] = "c00008-r0"
    search.metrics.on_trial_error(1, [], SimpleNamespace(trial_id="x"))
    assert ("cedm_gpus", "s", "c00008-r0") not in told


def test_nothing_of_it_goes_into_tunes_pickles(study, space, told, clock):
    assert vars(pickle.loads(pickle.dumps(Search(study, space).metrics))) == {}


def test_rays_own_metrics_take_what_is_told(cluster, study, space):
    search = Search(study, space)
    trial = search.begin(TrainTask(num_clusters=10), 0.5)
    search.metrics.on_trial_result(1, [], trial, {"images_seen": 1, "loss": 0.5, "rung": 0, "distance": 1.0})
    search.metrics.metrics.add("cedm_gpu_seconds", 1.5)
    metrics.tell_phase("s", "features")
    for name, instrument in INSTRUMENTS.items():
        assert search.metrics.metrics._metrics[name].info["tag_keys"] == instrument.tags
