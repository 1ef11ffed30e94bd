"""The three adapters between Tune and the driver, without a cluster."""

import dataclasses
import inspect
import pickle
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE, _ActorClassCache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils.object_cache import _ObjectCache

from cedm_ray import durable
from cedm_ray.distributed import ENVIRONMENT
from cedm_ray.distributed.spares import Spares
from cedm_ray.distributed.trainable import StudyTask
from cedm_ray.distributed.tuning import (
    DriverNews,
    DriverScheduler,
    DriverSearcher,
    task_resources,
    tune_folder,
    tune_name,
)
from cedm_ray.errors import StorageError
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.packing import Resources
from cedm_ray.search.results import Decision, TrialReport

REPORT = TrialReport(
    trial="c00004",
    rung=0,
    images_seen=500,
    distance=2.0,
    num_samples=32,
    loss=1.0,
    train_s=1.0,
    evaluate_s=1.0,
    skipped_steps=0,
    collapsed=False,
)


TRIAL, NAMES = SimpleNamespace(trial_id="t"), {"t": "c00004"}
SPARES = Spares({})


class FakeDriver:
    """Hands out the given tasks and remembers what it is told."""

    def __init__(self, study, space, tasks=(), status="running"):
        self.study, self.space, self.status = study, space, status
        self.tasks, self.told, self.finished, self.stop, self.gone = list(tasks), [], False, set(), set()
        self.followed = {"n1": 2}

    def next_task(self):
        return (self.tasks.pop(0), Resources(cpus=2, gpus=0.25, nodes=("n1",))) if self.tasks else None

    def space_for(self, task):
        return self.space

    def misplaced(self, name):
        return name in self.gone

    def needless(self, name):
        return name in self.stop

    def judge(self, report):
        self.told.append(report)
        fields = {"sequence": 1, "cutoff": None, "reason": ""}
        return Decision(trial=report.trial, rung=report.rung, images_seen=500, status=self.status, **fields)

    def end(self, name):
        self.told.append(("end", name))

    def die(self, name, text, *, out_of_memory=False, unreachable=False):
        self.told.append(("die", name, text, *(["memory"] if out_of_memory else []), *(["far"] if unreachable else [])))

    def fail(self, name, text, *, fatal=None):
        self.told.append(("fail", name, text, fatal))


def test_the_searcher_proposes_tasks_then_waits_then_finishes(study, space):
    driver = FakeDriver(study, space, [FitTask(num_clusters=4, repeat=0), TrainTask(num_clusters=None)])
    searcher = DriverSearcher(driver)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert (first["num_clusters"], first["repeat"], first["cpus"], first["gpus"]) == (4, 0, 2, 0.25)
    assert "repeat" not in second
    assert searcher.names == {"a": "c00004-r0", "b": "unconditional"}
    assert searcher.suggest("c") is None
    driver.finished = True
    assert searcher.suggest("c") == Searcher.FINISHED


@pytest.mark.parametrize("status", ["stopped", "completed", "diverged", "collapsed", "waiting"])
def test_the_scheduler_stops_what_the_driver_has_ended(study, space, status):
    driver = FakeDriver(study, space, status=status)
    result = dataclasses.asdict(REPORT) | {"training_iteration": 3, "done": False}
    assert DriverScheduler(driver, NAMES, SPARES).on_trial_result(None, TRIAL, result) == TrialScheduler.STOP
    assert driver.told == [REPORT]


def test_the_scheduler_lets_running_trials_and_mere_progress_go_on(study, space):
    driver = FakeDriver(study, space)
    scheduler = DriverScheduler(driver, NAMES, SPARES)
    assert scheduler.on_trial_result(None, TRIAL, dataclasses.asdict(REPORT)) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, TRIAL, {"images_seen": 100}) == TrialScheduler.CONTINUE
    assert driver.told == [REPORT]


def test_the_scheduler_stops_what_nothing_waits_for_any_more(study, space):
    driver = FakeDriver(study, space)
    driver.stop = {"c00004"}
    scheduler = DriverScheduler(driver, {**NAMES, "u": "c00008-r0"}, SPARES)
    assert scheduler.on_trial_result(None, TRIAL, {"images_seen": 100}) == TrialScheduler.STOP
    assert scheduler.on_trial_result(None, SimpleNamespace(trial_id="u"), {"epoch": 1}) == TrialScheduler.CONTINUE


def news(driver, shown):
    searcher = DriverSearcher(driver)
    searcher.names["t"] = "c00004"
    return DriverNews(driver, searcher, None, shown.append, lambda: driver.told.append("who is there?"))


@pytest.mark.parametrize(("code", "kind"), [(1, type(None)), (7, StorageError)])
def test_a_reported_failure_reaches_the_driver_and_a_full_disk_is_fatal(study, space, shown, code, kind):
    driver = FakeDriver(study, space)
    result = {"failure": "the text", "failure_code": code, "done": True}
    news(driver, shown).on_trial_complete(1, [], SimpleNamespace(trial_id="t", last_result=result))
    ((verb, name, text, fatal),) = driver.told
    assert (verb, name, text, type(fatal)) == ("fail", "c00004", "the text", kind)


def test_an_error_of_ours_in_a_hook_ends_the_search_and_not_in_a_traceback(study, space, shown, monkeypatch):
    driver = FakeDriver(study, space)

    def full(*arguments):
        raise StorageError("the storage is full")

    monkeypatch.setattr(driver, "judge", full)
    monkeypatch.setattr(driver, "end", full)
    scheduler = DriverScheduler(driver, NAMES, SPARES)
    assert scheduler.on_trial_result(None, TRIAL, dataclasses.asdict(REPORT)) == TrialScheduler.STOP
    assert isinstance(driver.fatal, StorageError)
    driver.fatal = None
    news(driver, shown).on_trial_complete(1, [], SimpleNamespace(trial_id="t", last_result={"done": True}))
    assert isinstance(driver.fatal, StorageError)


def test_a_lost_process_is_told_by_its_last_line(study, space, shown, tmp_path):
    driver = FakeDriver(study, space)
    (tmp_path / "error.txt").write_text("Traceback ...\nActorDiedError: killed\n")
    trial = SimpleNamespace(trial_id="t", error_file=str(tmp_path / "error.txt"))
    news(driver, shown).on_trial_error(1, [], trial)
    # Asked anew first: what died may be the machine.
    assert driver.told == ["who is there?", ("die", "c00004", "ActorDiedError: killed")]


def test_a_process_that_nobody_reaches_is_told_apart_from_one_that_died(study, space, shown, tmp_path):
    driver = FakeDriver(study, space)
    # As Tune writes it down.
    last = str(ActorUnavailableError("RpcError: RPC error: Socket closed", bytes(range(16))))
    (tmp_path / "error.txt").write_text(f"Failure # 1 (occurred at 2026-11-27_18-34-58)\n{last}\n")
    news(driver, shown).on_trial_error(1, [], SimpleNamespace(trial_id="t", error_file=str(tmp_path / "error.txt")))
    assert driver.told[-1] == ("die", "c00004", last.splitlines()[-1], "far")
    (tmp_path / "error.txt").write_text(f"Failure # 1 (occurred at 2026-11-27_18-34-58)\n{ActorDiedError()}\n")
    news(driver, shown).on_trial_error(1, [], SimpleNamespace(trial_id="t", error_file=str(tmp_path / "error.txt")))
    assert driver.told[-1][-1] != "far"


@pytest.mark.parametrize(
    "error",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
        "MemoryError",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to",
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
    ],
)
def test_a_process_that_ran_out_of_memory_is_told_as_that(study, space, shown, error, tmp_path):
    driver = FakeDriver(study, space)
    (tmp_path / "error.txt").write_text(f"Traceback ...\n{error}\n")
    trial = SimpleNamespace(trial_id="t", error_file=str(tmp_path / "error.txt"))
    news(driver, shown).on_trial_error(1, [], trial)
    assert driver.told[-1] == ("die", "c00004", error, "memory")


def test_what_waits_for_a_machine_that_is_gone_is_given_up(study, space):
    driver, stopped = FakeDriver(study, space), []
    trials = [SimpleNamespace(trial_id=key, status=status) for key, status in (("t", "PENDING"), ("u", "RUNNING"))]
    controller = SimpleNamespace(
        get_live_trials=lambda: trials,
        get_trials=list,
        stop_trial=lambda t: stopped.append(t.trial_id),
        _actor_cache=SimpleNamespace(num_cached_objects=0),
    )
    scheduler = DriverScheduler(driver, {**NAMES, "u": "c00008"}, SPARES)
    scheduler.choose_trial_to_run(controller)
    assert stopped == []
    driver.gone = {"c00004", "c00008"}
    scheduler.choose_trial_to_run(controller)
    assert stopped == ["t"]
    # One that runs has a result every few seconds, if only an empty one.
    assert scheduler.on_trial_result(None, SimpleNamespace(trial_id="u"), {}) == TrialScheduler.STOP


def test_processes_are_started_ahead_while_no_task_waits_for_its_own(study, space):
    driver, trials = FakeDriver(study, space), [SimpleNamespace(trial_id="t", status="PENDING")]
    controller = SimpleNamespace(
        get_live_trials=lambda: trials, get_trials=list, _actor_cache=SimpleNamespace(num_cached_objects=0)
    )
    spares = Spares({"n1": 4})
    scheduler = DriverScheduler(driver, NAMES, spares)
    scheduler.choose_trial_to_run(controller)
    assert spares.wanted == {}
    trials[0].status = "RUNNING"
    scheduler.choose_trial_to_run(controller)
    assert spares.wanted == {"n1": 2}


@pytest.mark.parametrize(("value", "own"), [(None, False), ("1.5", True)])
def test_a_task_has_the_drivers_environment_unless_the_user_set_one_for_train(study, space, monkeypatch, value, own):
    """Ray gives a spare process to no other. The private hook that this needs is there: Tune's cache of classes."""
    for name in ENV_VARS_TO_PROPAGATE:
        monkeypatch.delenv(name, raising=False)
    for name, default in ENVIRONMENT.items():
        monkeypatch.setenv(name, default)
    if value is not None:
        monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", value)
    controller = SimpleNamespace(_class_cache=_ActorClassCache())
    trial = SimpleNamespace(get_trainable_cls=lambda: StudyTask)
    DriverScheduler(FakeDriver(study, space), NAMES, SPARES).on_trial_add(controller, trial)
    options = controller._class_cache.get(StudyTask)._default_options
    assert bool(options.get("runtime_env")) is own


def test_an_ended_trial_is_told_by_its_decision_and_shows_no_time_left(study, space, shown):
    told = news(FakeDriver(study, space), shown)
    told.on_trial_result(1, [], TRIAL, {"images_seen": 500, "loss": 3.0, "rung": 0, "done": True})
    assert shown == []


def test_progress_is_shown_in_images_of_the_whole_budget(study, space, shown):
    result = {"images_seen": 250, "loss": 3.0}
    news(FakeDriver(study, space), shown).on_trial_result(1, [], SimpleNamespace(trial_id="t"), result)
    (progress,) = shown
    assert (progress.task, progress.done, progress.total) == ("c00004", 250, 1000)


def test_a_report_that_a_process_says_again_beyond_it_is_no_progress(study, space, shown):
    """The trial would seem to be back there, and the time left to be that of whoever trained so fast since."""
    told = news(FakeDriver(study, space), shown)
    result = {"images_seen": 250, "loss": 3.0, "rung": 0}
    for saved, lines in ((250, 1), (300, 1)):
        place = study.checkpoints("c00004") / f"{saved:012d}" / durable.MANIFEST
        place.parent.mkdir(parents=True)
        place.touch()
        told.on_trial_result(1, [], TRIAL, result)
        assert len(shown) == lines
    told.on_trial_result(2, [], TRIAL, {"images_seen": 350, "loss": 3.0})
    assert shown[-1].done == 350


def test_nothing_of_a_study_goes_into_tunes_pickles(study, space, shown):
    driver = FakeDriver(study, space)
    for adapter in (DriverSearcher(driver), DriverScheduler(driver, NAMES, SPARES), news(driver, shown)):
        assert vars(pickle.loads(pickle.dumps(adapter))) == {}


def test_workers_of_a_nested_trial_reserve_for_themselves_and_others_where_they_were_told_to():
    held = {"title": "cedm C=4", "nested": False, "cpus": 2, "gpus": 0.5, "memory_bytes": 2.0**31, "nodes": ["n1"]}
    plain = task_resources(held)
    assert plain.bundles == [{"CPU": 2, "GPU": 0.5, "memory": 2**31}]
    # Tune gives a process to another task only if that goes to the same machine.
    assert plain == task_resources(dict(held))
    assert plain != task_resources({**held, "nodes": ["n2"]})
    assert task_resources({**held, "cpus": 1, "gpus": 0, "memory_bytes": 0}).bundles == [{"CPU": 1}]
    assert task_resources({**held, "nested": True}).bundles == [{"node:__internal_head__": 0.001}]


def test_a_process_goes_from_fit_to_fit_and_each_trial_has_its_own():
    held = {"nested": False, "cpus": 1, "gpus": 0, "memory_bytes": 0, "nodes": ["n1"]}
    four, eight = (held | {"title": f"cedm C={n}"} for n in (4, 8))
    fit = {"repeat": 0}
    assert task_resources(four | fit) == task_resources(eight | fit)
    assert task_resources(four) == task_resources(dict(four))
    different = [
        task_resources(four),
        task_resources(eight),
        task_resources(four | fit),
        task_resources(four | {"cpus": 2}),
    ]
    assert len(set(different)) == 4
    copied = pickle.loads(pickle.dumps(different[0]))
    assert copied == different[0]
    assert hash(copied) == hash(different[0])


def test_tunes_own_tables_and_folders_name_the_task():
    trial = SimpleNamespace(trial_id="ab12_00003", config={"title": "cedm C=100"})
    assert (tune_name(trial), tune_folder(trial)) == ("cedm C=100", "cedm-C=100-ab12_00003")


def test_progress_tells_loss_and_pace_and_a_rung_is_a_milestone_without_its_mean_loss(study, space, shown):
    result = {"images_seen": 250, "loss": 3.0, "images_per_s": 1234.5}
    told = news(FakeDriver(study, space), shown)
    told.on_trial_result(1, [], TRIAL, result)
    told.on_trial_result(2, [], TRIAL, result | {"rung": 0})
    assert [progress.detail for progress in shown] == ["loss 3, 1,234 images/s", "1,234 images/s"]
    assert [progress.milestone for progress in shown] == [False, True]


def test_the_process_of_an_ended_task_waits_for_another_but_not_for_long(study, space, monkeypatch):
    """The private hook that this needs is there: Tune's cache, and the method that empties it."""
    assert "force_all" in inspect.signature(TuneController._cleanup_cached_actors).parameters
    flushed, cache = [], _ObjectCache(may_keep_one=True)
    controller = SimpleNamespace(
        get_live_trials=list,
        get_trials=list,
        _actor_cache=cache,
        _cleanup_cached_actors=lambda force_all: flushed.extend(cache.flush_cached_objects(force_all=force_all)),
    )
    scheduler = DriverScheduler(FakeDriver(study, space), NAMES, SPARES)
    assert cache.cache_object("a trial's resources", "its process")
    scheduler.choose_trial_to_run(controller)
    assert flushed == []
    monkeypatch.setattr("cedm_ray.distributed.tuning.IDLE_S", -1.0)
    scheduler.choose_trial_to_run(controller)
    assert flushed == ["its process"]
    assert cache.num_cached_objects == 0
