"""run_study on a cluster: goals, the lock, changed inputs, and failed trials as data."""

import pytest
from PIL import Image

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.distributed import run
from cedm_ray.errors import ConfigurationError, InputDataError, LockedError
from cedm_ray.evaluation.requests import Request
from cedm_ray.lock import exclusive_lock
from cedm_ray.search.goals import Goal
from cedm_ray.search.outcome import restore, study_result
from cedm_ray.search.results import Notice, Progress
from cedm_ray.search.space import SearchSpace


def test_the_bound_alone_trains_nothing_and_resumes_to_nothing(cluster, space, study, shown, capsys):
    goal = Goal(kind="bound")
    images = run.run_study(study, space, goal, address=None, show=print)
    result = restore(study, space, len(images), goal).agenda.bound
    assert result.c_max is not None
    # Tune's own output is thrown away, and no more than that.
    assert result.reason in capsys.readouterr().out
    assert result.c_max * 10 * 0.9 < 10 * max(point.num_used for point in result.points if point.passed) + 1e-9
    assert study.trials() == []
    fits = study.fits()
    shown.clear()
    run.run_study(study, space, goal, address=None, show=shown.append)
    assert (study.fits(), shown) == (fits, [])


def test_a_failed_trial_is_data(cluster, space, ready, shown):
    levels = space.network.model_copy(update={"channel_mult": (1, 1, 1, 1, 1)})
    broken = space.model_copy(update={"network": levels})
    run.run_study(ready, broken, Goal(kind="trial"), address=None, show=shown.append)
    assert "image_size must be" in ready.failures()["unconditional"]


def test_a_detector_that_is_not_there_is_named_before_anything_is_trained(cluster, space, ready, shown, tmp_path):
    missing = space.evaluation.model_copy(update={"detector": str(tmp_path / "missing.pt")})
    with pytest.raises(InputDataError, match=r"missing\.pt"):
        run.run_study(
            ready, space.model_copy(update={"evaluation": missing}), Goal(kind="trial"), address=None, show=shown.append
        )
    assert ready.trials() == []
    # Nothing was made by it, so whoever names another goes on in the same study.
    with run._driving(ready, space, None, shown.append):
        assert ready.settled() == space.settled()


def test_an_extractor_that_is_not_there_is_named_with_what_mends_it(cluster, space, study, shown, tmp_path):
    missing = space.features.model_copy(update={"extractor": str(tmp_path / "missing.pt")})
    with pytest.raises(InputDataError, match=r"missing\.pt") as caught:
        run.run_study(
            study, space.model_copy(update={"features": missing}), Goal(kind="bound"), address=None, show=shown.append
        )
    assert caught.value.mend


def test_more_clusters_than_images_are_refused_before_ray_is_asked(space, study, shown):
    with pytest.raises(ConfigurationError, match="must not exceed the 300 images, got 5000"):
        run.run_study(study, space, Goal(kind="trial", num_clusters=5000), address=None, show=shown.append)
    assert study.failures() == {}


def test_searched_networks_that_do_not_fit_the_images_are_refused_before_ray_is_asked(space, study, shown):
    also = {"network.channel_mult": ((1, 1), (1, 1, 1, 1, 1))}
    candidates = space.candidates.model_copy(update={"also": also})
    broken = space.model_copy(update={"candidates": candidates})
    with pytest.raises(ConfigurationError, match=r"multiple of 16, and these have 8 pixels"):
        run.run_study(study, broken, Goal(kind="search"), address=None, show=shown.append)
    assert study.fits() == {}


def test_a_second_driver_is_refused_before_it_touches_anything(space, study, shown):
    with exclusive_lock(study.lock), pytest.raises(LockedError, match="in use by process"):
        run.run_study(study, space, Goal(kind="bound"), address=None, show=shown.append)
    assert not study.exists


def test_changed_images_and_a_changed_space_are_refused(space, study, shown, tmp_path):
    for index in range(4):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
    own = space.model_copy(update={"images": space.images.model_copy(update={"source": str(tmp_path)})})
    with run._driving(study, own, None, shown.append):
        pass
    other = own.model_copy(update={"images": own.images.model_copy(update={"crop": "center"})})
    told = "images.crop was 'none' and is 'center'"
    with pytest.raises(ConfigurationError, match=told), run._driving(study, other, None, shown.append):
        pass
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "9.png")
    with pytest.raises(InputDataError, match="not those that"), run._driving(study, own, None, shown.append):
        pass
    for path in tmp_path.glob("*.png"):
        path.unlink()
    tmp_path.joinpath("gone").mkdir()
    gone = own.model_copy(update={"images": own.images.model_copy(update={"source": str(tmp_path / "nowhere")})})
    with run._driving(study, gone, None, shown.append) as images:
        assert len(images) == 4
    assert "goes on with its own copy" in shown[-1].text


def test_the_cluster_is_remembered_for_a_second_and_until_something_died(monkeypatch):
    answers = iter("abc")
    clock = [100.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    cluster = run.Remembered(lambda: next(answers))
    assert [cluster(), cluster()] == ["a", "a"]
    clock[0] += 1.5
    assert [cluster(), cluster()] == ["b", "b"]
    cluster.forget()
    assert cluster() == "c"


def test_the_kept_model_is_measured_once_and_by_the_same_call_as_the_verb(done, tiny_space, shown, monkeypatch):
    measured = tiny_space.model_copy(update={"finals": tiny_space.finals.model_copy(update={"evaluate": True})})
    images = open_image_set(done.images)
    best = study_result(done, tiny_space, images).best
    asked = []

    def evaluate(request, *, cache, run, show):
        asked.append(request)
        done.write_evaluation(best, "0" * 64, {"name": best, "images_seen": find_model_images(done)})
        return {"name": best, "collapsed": True}

    monkeypatch.setattr(run, "evaluate", evaluate)
    run._measure_best(done, tiny_space, images, None, shown.append)
    assert asked == []
    assert not run._is_unfinished(done, tiny_space, images)
    assert run._is_unfinished(done, measured, images)
    run._measure_best(done, measured, images, None, shown.append)
    assert asked == [Request(source=str(done.path))]
    assert f"the images of {best} are all alike" in shown[-1].text
    assert not run._is_unfinished(done, measured, images)


def find_model_images(study):
    return durable.read_checkpoint(study.best).manifest["images_seen"]


def test_a_search_for_more_than_c_finds_its_features_fits_and_trials_on_a_cluster(
    cluster, space, study, shown, color_network
):
    plain = space.model_dump(mode="json")
    also = {
        "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "features.extractor": ["pixels", str(color_network)],
        "clustering.method": ["temi", "kmeans"],
    }
    wide = SearchSpace.model_validate(
        {
            **plain,
            "bound": {**plain["bound"], "c_start": 4, "c_limit": 4},
            "candidates": {"explicit": [2, 3], "also": also, "proposals": "tpe", "num_trials": 6, "ahead": 3},
        }
    )
    images = run.run_study(study, wide, Goal(kind="search"), address=None, show=shown.append)
    tried, fits = study.proposals(), study.fits()
    assert len({(one.num_clusters, one.settings) for one in tried}) == 6
    result = study_result(study, wide, images)
    assert {trial.trial for trial in result.trials} == {"unconditional", *(one.task.trial for one in tried)}
    assert all(trial.status in ("completed", "stopped") for trial in result.trials)
    for one in tried:
        values = dict(one.settings)
        about = durable.read_tensors(study.fit(one.task.fit.name))[1]
        assert fits[one.task.fit.name].changes == dict(one.task.fit.changes)
        assert (about["extractor"], about["method"]) == (values["features.extractor"], values["clustering.method"])
    best = next(one for one in tried if one.task.trial == result.best)
    assert durable.read_record(study.best / durable.MANIFEST).get("fit") == (
        best.task.fit.name if best.task.fit.changes else None
    )
    shown.clear()
    run.run_study(study, wide, Goal(kind="search"), address=None, show=shown.append)
    assert (study.proposals(), shown) == (tried, [])


def test_what_the_caller_needs_next_is_imported_once_a_task_computes(monkeypatch):
    imported, shown = [], []
    monkeypatch.setattr(run, "import_meanwhile", lambda *names: imported.append(names))
    show = run._importing(("one", "two"), shown.append)
    notice, progress = Notice(text="hello"), Progress(task="c00002-r0", done=1, total=2, unit="epochs")
    show(notice)
    assert imported == []
    for _ in range(2):
        show(progress)
    assert imported == [("one", "two")]
    assert shown == [notice, progress, progress]
