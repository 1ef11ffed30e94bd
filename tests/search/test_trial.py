"""A trial that is killed anywhere and begun again ends with the weights and reports of one that was not."""

import shutil
import threading
from collections import Counter

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.diffusion.sample import sample
from cedm_ray.diffusion.train import DivergedError, TrainProgress
from cedm_ray.errors import InputDataError, IntegrityError, StorageError
from cedm_ray.search import checkpoints as checkpoints_module
from cedm_ray.search import trial as trial_module
from cedm_ray.search.evaluate import distance_to, image_statistics
from cedm_ray.search.finals import FinalsConfig
from cedm_ray.search.model import EMA_FILE, TRAINING_FILE, open_model
from cedm_ray.search.results import Notice, RungSamples, TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study
from cedm_ray.search.trial import load_assignment, run_trial

C = 4
# Batches of 64: four progress values, then images and a report, at each of the two rungs; a checkpoint every 128.
EVENTS = 12


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def run(study, space, stop_after=None):
    """The events of a trial; stop_after: how many are taken before the process dies."""
    events, taken = run_trial(study, space, C, device="cpu"), []
    for event in events:
        taken.append(event)
        if len(taken) == stop_after:
            break
    events.close()
    return taken


def reports_in(events):
    """The reports among events, without what is a wall time or the mean of a loss since the process began."""
    fields = ("trial", "rung", "images_seen", "distance", "num_samples", "skipped_steps", "collapsed")
    return [tuple(getattr(e, field) for field in fields) for e in events if isinstance(e, TrialReport)]


def final_weights(study):
    """Every tensor of the last checkpoint, bit by bit: averaged weights, weights and the optimizer's moments."""
    checkpoint = durable.newest_checkpoint(study.checkpoints("c00004"))
    assert checkpoint.manifest["images_seen"] == 512
    found = {}
    for name, data in checkpoint.files.items():
        tensors, _ = durable.unpack_tensors(data, name)
        found |= {key: (array.dtype, array.shape, array.tobytes()) for key, array in tensors.items()}
    return found


@pytest.fixture(scope="module")
def whole(prepared, tiny_space, tmp_path_factory):
    """(study, events) of a trial that nothing interrupted."""
    study = Study(tmp_path_factory.mktemp("whole") / "study")
    shutil.copytree(prepared.path, study.path)
    return study, run(study, tiny_space)


def test_a_trial_trains_and_reports_at_every_rung(whole, tiny_space):
    study, events = whole
    kinds = [type(event) for event in events]
    assert kinds == [*[TrainProgress] * 4, RungSamples, TrialReport] * 2
    assert [e.images_seen for e in events] == [64, 128, 192, 256, 256, 256, 320, 384, 448, 512, 512, 512]
    first, second = study.reports("c00004")
    assert [first, second] == [e for e in events if isinstance(e, TrialReport)]
    assert (first.rung, second.rung) == (0, 1)
    assert first.num_samples == second.num_samples == 32
    assert 0 < second.distance < first.distance
    assert first.loss == pytest.approx(np.mean([e.loss for e in events[:4]]))
    # Two are kept.
    assert [p.name for p in sorted(study.checkpoints("c00004").iterdir())] == ["000000000384", "000000000512"]


def test_the_images_of_a_rung_are_the_first_that_its_model_makes(whole, tiny_space):
    study, events = whole
    samples = [event for event in events if isinstance(event, RungSamples)][-1]
    assert (samples.trial, samples.rung, samples.images_seen) == ("c00004", 1, 512)
    assert samples.seeds.tolist() == list(range(32))
    model = open_model(durable.newest_checkpoint(study.checkpoints("c00004")), "cpu", study)
    counts = np.asarray(model.meaning.counts, dtype=np.int64)
    settings = {"config": tiny_space.rung_sampling, "image_size": 8, "counts": counts, "device": "cpu"}
    assert (samples.images == np.concatenate(list(sample(model.denoiser, range(32), **settings)))).all()


def test_no_more_images_are_told_of_than_a_person_looks_at(fresh, tiny_space, monkeypatch):
    monkeypatch.setattr(trial_module, "SHOWN_IMAGES", 20)
    space = tiny_space.model_copy(update={"sampling": tiny_space.sampling.model_copy(update={"batch_size": 16})})
    events = run(fresh, space, stop_after=5)
    assert events[-1].seeds.tolist() == list(range(20))
    assert events[-1].images.shape == (20, 3, 8, 8)


@pytest.mark.parametrize("stop_after", range(1, EVENTS + 1))
def test_killed_after_any_event_and_run_again_ends_the_same(whole, fresh, tiny_space, stop_after):
    before = run(fresh, tiny_space, stop_after)
    died_at = before[-1].images_seen
    saved = durable.newest_checkpoint(fresh.checkpoints("c00004"))
    saved_at = 0 if saved is None else saved.manifest["images_seen"]
    # The generator had not come back from yielding the 128th image when it died: that interval is the one to repeat.
    assert died_at - saved_at <= 128
    after = run(fresh, tiny_space)
    trained = [event.images_seen for event in after if isinstance(event, TrainProgress)]
    assert trained == list(range(saved_at + 64, 513, 64))
    assert reports_in(after) == reports_in(whole[1])
    assert final_weights(fresh) == final_weights(whole[0])


@pytest.mark.parametrize("rung", [0, 1])
def test_killed_between_checkpoint_and_report_repeats_no_training(whole, fresh, tiny_space, monkeypatch, rung):
    write_report = Study.write_report

    def die(study, report):
        if report.rung == rung:
            raise Killed
        write_report(study, report)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "write_report", die)
        with pytest.raises(Killed):
            run(fresh, tiny_space)
    assert [report.rung for report in fresh.reports("c00004")] == list(range(rung))
    after = run(fresh, tiny_space)
    trained = [event.images_seen for event in after if isinstance(event, TrainProgress)]
    assert trained == ([320, 384, 448, 512] if rung == 0 else [])
    assert reports_in(after) == reports_in(whole[1])
    assert final_weights(fresh) == final_weights(whole[0])


def test_killed_while_a_checkpoint_is_written_falls_back_silently_to_the_one_before(
    whole, fresh, tiny_space, monkeypatch
):
    with monkeypatch.context() as patch:
        written = Counter()
        write_bytes = durable.write_bytes

        def die(path, data):
            written[path.name] += 1
            # The third checkpoint's second file.
            if path.name == TRAINING_FILE and written[TRAINING_FILE] == 3:
                raise Killed
            write_bytes(path, data)

        patch.setattr(durable, "write_bytes", die)
        with pytest.raises(Killed):
            run(fresh, tiny_space)
    after = run(fresh, tiny_space)
    # It was never acknowledged, so there is nothing to tell.
    assert not [event for event in after if isinstance(event, Notice)]
    assert reports_in(after) == reports_in(whole[1])
    assert final_weights(fresh) == final_weights(whole[0])


@pytest.mark.parametrize("name", [EMA_FILE, TRAINING_FILE, durable.MANIFEST])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(whole, fresh, tiny_space, name):
    run(fresh, tiny_space, stop_after=8)
    # Dead in the middle of the second rung, with checkpoints at 256 and 384.
    run(fresh, tiny_space, stop_after=4)
    newest = max(fresh.checkpoints("c00004").iterdir())
    assert newest.name == "000000000384"
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / name).write_bytes(data)
    after = run(fresh, tiny_space)
    (notice,) = [event for event in after if isinstance(event, Notice)]
    assert "c00004 goes on from 000000000256 images" in notice.text
    assert name in notice.text
    assert reports_in(after) == reports_in(whole[1])
    assert final_weights(fresh) == final_weights(whole[0])


def test_a_checkpoint_damaged_behind_a_report_leaves_the_report_as_it_is(whole, fresh, tiny_space):
    run(fresh, tiny_space, stop_after=6)
    newest = max(fresh.checkpoints("c00004").iterdir())
    assert newest.name == "000000000256"
    (newest / EMA_FILE).write_bytes(b"")
    after = run(fresh, tiny_space)
    assert reports_in(after) == reports_in(whole[1])
    assert final_weights(fresh) == final_weights(whole[0])


def test_all_checkpoints_damaged_is_an_integrity_error(fresh, tiny_space):
    run(fresh, tiny_space, stop_after=6)
    for path in fresh.checkpoints("c00004").rglob(EMA_FILE):
        path.write_bytes(b"x")
    with pytest.raises(IntegrityError, match="no valid checkpoint is left"):
        run(fresh, tiny_space)


def test_a_finished_trial_says_its_reports_again_and_trains_nothing(whole, fresh, tiny_space, monkeypatch):
    first = run(fresh, tiny_space)
    monkeypatch.setattr(trial_module, "train", None)
    assert run(fresh, tiny_space) == [event for event in first if isinstance(event, TrialReport)]


def test_checkpoints_at_rungs_only_give_the_same_weights(whole, fresh, tiny_space):
    plain = tiny_space.model_dump(mode="json")
    space = SearchSpace.model_validate({**plain, "checkpoints": {"every_kimg": None}})
    events = run(fresh, space)
    assert reports_in(events) == reports_in(whole[1])
    assert [p.name for p in sorted(fresh.checkpoints("c00004").iterdir())] == ["000000000256", "000000000512"]
    assert final_weights(fresh) == final_weights(whole[0])


def test_training_that_diverges_is_reported_without_a_distance(fresh, tiny_space, monkeypatch):
    train = trial_module.train

    def diverge(state, *arguments, **settings):
        for progress in train(state, *arguments, **settings):
            if progress.images_seen > 256:
                raise DivergedError("not finite")
            yield progress

    monkeypatch.setattr(trial_module, "train", diverge)
    events = run(fresh, tiny_space)
    first, second = fresh.reports("c00004")
    assert first.distance > 0
    assert (second.distance, second.collapsed, second.loss) == (None, False, None)
    assert events[-1] == second
    # What diverged is not kept as a checkpoint.
    assert max(fresh.checkpoints("c00004").iterdir()).name == "000000000256"


def test_one_cluster_in_use_is_no_condition(fresh, tiny_space):
    record = FitRecord(num_clusters=5, repeat=0, num_used=1, loss=0.0, seconds=0.0)
    labels = np.full(300, 3, dtype=np.int32)
    fresh.write_fit(record, "c00005-r0", {"labels": labels}, {"method": "temi"})
    with pytest.raises(InputDataError, match="C = 5: all images fell into one cluster") as caught:
        next(run_trial(fresh, tiny_space, 5, device="cpu"))
    assert "clustering.epochs" in caught.value.mend


def test_what_the_weights_mean_is_in_the_manifest(fresh, tiny_space):
    labels = np.array([7, 2, 2] * 100, dtype=np.int32)
    record = FitRecord(num_clusters=9, repeat=0, num_used=2, loss=0.0, seconds=0.0)
    fresh.write_fit(record, "c00009-r0", {"labels": labels}, {"method": "by hand"})
    assert load_assignment(fresh, 9).method == "by hand"
    for event in run_trial(fresh, tiny_space, 9, device="cpu"):
        if isinstance(event, TrialReport):
            break
    manifest = durable.newest_checkpoint(fresh.checkpoints("c00009")).manifest
    assert (manifest["trial"], manifest["num_clusters"]) == ("c00009", 9)
    assert (manifest["class_ids"], manifest["counts"]) == ([2, 7], [200, 100])
    assert (manifest["image_size"], manifest["images_seen"]) == (8, 256)


def test_a_full_disk_ends_the_trial_with_what_was_acknowledged_kept(whole, fresh, tiny_space, monkeypatch):
    with monkeypatch.context() as patch:
        save, saved = checkpoints_module.save_checkpoint, []

        def full(*arguments):
            if len(saved) == 3:
                raise StorageError("the storage is full")
            saved.append(save(*arguments))

        patch.setattr(checkpoints_module, "save_checkpoint", full)
        with pytest.raises(StorageError):
            run(fresh, tiny_space)
    assert durable.newest_checkpoint(fresh.checkpoints("c00004")).manifest["images_seen"] == 384
    assert reports_in(run(fresh, tiny_space)) == reports_in(whole[1])
    assert final_weights(fresh) == final_weights(whole[0])


def test_a_rung_of_fewer_images_than_features_is_measured_by_the_features(fresh, tiny_space, monkeypatch):
    """As by their statistics, and without a D x D sum of them."""
    evaluation = tiny_space.evaluation.model_copy(update={"num_samples": 12})
    rungs = tiny_space.rungs.model_copy(update={"rungs_kimg": (0.128,)})
    space = tiny_space.model_copy(update={"evaluation": evaluation, "rungs": rungs})
    other = Study(fresh.path.parent / "other")
    shutil.copytree(fresh.path, other.path)
    with monkeypatch.context() as patched:
        patched.setattr(trial_module, "image_statistics", None)
        (by_features,) = [event for event in run(fresh, space) if isinstance(event, TrialReport)]
    with monkeypatch.context() as patched:
        patched.setattr(
            trial_module,
            "low_rank_distance",
            lambda batches, detector, reference: distance_to(reference, image_statistics(batches, detector)),
        )
        (by_sums,) = [event for event in run(other, space) if isinstance(event, TrialReport)]
    assert by_features.distance == pytest.approx(by_sums.distance, rel=1e-8)


def test_a_report_is_not_acknowledged_before_its_checkpoint_is_durable(fresh, tiny_space, monkeypatch):
    save, write_report = checkpoints_module.save_checkpoint, Study.write_report
    order, measured = [], threading.Event()

    def slow(parent, snapshot, *arguments):
        # The model is measured while its checkpoint is written; only the report waits for it.
        assert snapshot.images_seen != 256 or measured.wait(60)
        save(parent, snapshot, *arguments)
        order.append(("checkpoint", snapshot.images_seen))

    def measure(*arguments):
        measured.set()
        return 1.0, False, np.empty((0, 3, 8, 8), dtype=np.uint8)

    def write(study, report):
        order.append(("report", report.images_seen))
        write_report(study, report)

    monkeypatch.setattr(checkpoints_module, "save_checkpoint", slow)
    monkeypatch.setattr(trial_module, "_measure", measure)
    monkeypatch.setattr(Study, "write_report", write)
    run(fresh, tiny_space)
    assert order == [
        ("checkpoint", 128),
        ("checkpoint", 256),
        ("report", 256),
        ("checkpoint", 384),
        ("checkpoint", 512),
        ("report", 512),
    ]


def test_a_further_seed_is_another_training_on_the_same_clusters(whole, fresh, tiny_space):
    events = list(run_trial(fresh, tiny_space, C, device="cpu", seed=1))
    again = [event for event in events if isinstance(event, TrialReport)]
    assert [(report.trial, report.rung) for report in again] == [("c00004-s1", 0), ("c00004-s1", 1)]
    first = whole[0].reports("c00004")
    assert all(a.distance != b.distance for a, b in zip(again, first, strict=True))
    manifests = [
        durable.newest_checkpoint(study.checkpoints(name)).manifest
        for study, name in ((whole[0], "c00004"), (fresh, "c00004-s1"))
    ]
    assert manifests[0]["class_ids"] == manifests[1]["class_ids"]
    assert manifests[0]["counts"] == manifests[1]["counts"]
    assert fresh.trials() == ["c00004-s1"]


def test_the_last_stretch_goes_on_from_the_checkpoint_and_says_only_its_own_report(whole, tmp_path, tiny_space):
    further = tiny_space.model_copy(update={"finals": FinalsConfig(budget_kimg=0.768)})
    study = Study(tmp_path / "study")
    shutil.copytree(whole[0].path, study.path)
    events = list(run_trial(study, further, C, device="cpu", final=True))
    assert [event.rung for event in events if isinstance(event, TrialReport)] == [2]
    # From 512 images to 768, and not from the beginning.
    seen = [event.images_seen for event in events if isinstance(event, TrainProgress)]
    assert (min(seen), max(seen)) == (576, 768)
    # The same weights as a search whose budget was larger from the start, since no schedule depends on it here.
    longer = tiny_space.model_copy(
        update={"rungs": tiny_space.rungs.model_copy(update={"rungs_kimg": (0.256, 0.512, 0.768)})}
    )
    other = Study(tmp_path / "other")
    shutil.copytree(whole[0].path, other.path)
    (report,) = [e for e in run_trial(other, longer, C, device="cpu") if isinstance(e, TrialReport) and e.rung == 2]
    assert report.distance == events[-1].distance
