"""A task's curves as TensorBoard reads them: whole, resumed, stopped, removed, and not to be written at all."""

import itertools
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG

from cedm_ray.clustering.temi import TemiProgress
from cedm_ray.data.image_set import open_image_set
from cedm_ray.diffusion.train import TrainProgress
from cedm_ray.report.publish import publish
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.results import Notice, RungSamples, TrialReport
from cedm_ray.search.study import Study
from cedm_ray.watching.curves import GRID_TAG, complete_curves, fit_points, training_points, watched

TASK = TrainTask(num_clusters=4)
STEPS = [64, 128, 192, 256, 320, 384, 448, 512]
TIMES = ("rung/train_s", "rung/evaluate_s", "train/images_per_s")


def follow(study, space, task, open_task, stop_after=None):
    """Run a task as its process does; stop_after: the number of events after which it is dropped."""
    events = watched(study, space, task, open_task(study, space, task))
    taken = list(itertools.islice(events, stop_after))
    events.close()
    return taken


def all_points(read, folder):
    """Every (tag, step, value) of a run, without what is a wall time."""
    run = read(folder)
    return [(tag, e.step, e.value) for tag in run.Tags()["scalars"] if tag not in TIMES for e in run.Scalars(tag)]


@pytest.fixture(scope="module")
def whole(prepared, tiny_space, study_tools, tmp_path_factory):
    """(study, events) of a trial that nothing interrupted."""
    study = Study(tmp_path_factory.mktemp("whole") / "study")
    shutil.copytree(prepared.path, study.path)
    return study, follow(study, tiny_space, TASK, study_tools.open_task)


def test_a_trials_curves_are_what_it_said(whole, points):
    study, events = whole
    folder = study.tensorboard("c00004")
    said = [event for event in events if isinstance(event, TrainProgress)]
    assert [step for step, _ in points(folder, "train/loss")] == STEPS
    for name in ("loss", "learning_rate", "gradient_norm", "images_per_s"):
        # Single precision is all that a curve has.
        values = [value for _, value in points(folder, f"train/{name}")]
        assert values == pytest.approx([getattr(progress, name) for progress in said], rel=1e-6)
    assert {value for _, value in points(folder, "train/skipped_steps")} == {0}
    reports = [event for event in events if isinstance(event, TrialReport)]
    expected = [(report.images_seen, pytest.approx(report.distance, rel=1e-6)) for report in reports]
    assert points(folder, "rung/distance") == expected
    assert points(folder, "rung/kimg") == [(256, pytest.approx(0.256)), (512, pytest.approx(0.512))]


def test_the_average_of_the_weights_is_told_by_its_half_life(tiny_space):
    progress = TrainProgress(images_seen=1000, loss=None, learning_rate=0.1, skipped_steps=0)
    decay = training_points(progress, tiny_space)["train/ema_decay"]
    # A weight counts half after ema_halflife_kimg.
    assert decay ** (1000 * tiny_space.training.ema_halflife_kimg / tiny_space.training.batch_size) == pytest.approx(
        0.5
    )


def test_a_rungs_images_stand_in_the_run_and_go_no_further(whole, read, tiny_space):
    study, events = whole
    assert not [event for event in events if isinstance(event, RungSamples)]
    grids = read(study.tensorboard("c00004")).Images(GRID_TAG)
    # 32 images of 8 pixels, four times as large, eight to a row.
    size = (8 * 34 - 2, 4 * 34 - 2)
    assert [(grid.step, grid.width, grid.height) for grid in grids] == [(256, *size), (512, *size)]


@pytest.mark.parametrize("stop_after", [1, 3, 4, 5, 6, 9, 10])
def test_a_trial_that_was_killed_goes_on_in_the_same_curves(whole, fresh, tiny_space, study_tools, read, stop_after):
    follow(fresh, tiny_space, TASK, study_tools.open_task, stop_after)
    follow(fresh, tiny_space, TASK, study_tools.open_task)
    folder = fresh.tensorboard("c00004")
    found, expected = (dict[tuple, float](), dict[tuple, float]())
    for run, kept in ((folder, found), (whole[0].tensorboard("c00004"), expected)):
        told = all_points(read, run)
        kept.update({(tag, step): value for tag, step, value in told})
        assert len(kept) == len(told), "a point is there twice"
    # The mean loss of a rung is told since the process began.
    for points in (found, expected):
        points.pop(("rung/loss", 256))
        points.pop(("rung/loss", 512))
    assert found == expected
    assert [grid.step for grid in read(folder).Images(GRID_TAG)] == [256, 512]


def test_a_fits_curves_go_by_epochs(fresh, tiny_space, study_tools, points):
    events = follow(fresh, tiny_space, FitTask(num_clusters=8, repeat=0), study_tools.open_task)
    folder = fresh.tensorboard("c00008-r0")
    assert [event.epoch for event in events] == [1, 2, 3, 4]
    for tag, expected in (
        ("temi/loss", [e.loss for e in events]),
        ("temi/marginal_entropy", [e.marginal_entropy for e in events]),
        ("temi/utilization", [e.num_used / 8 for e in events]),
    ):
        assert points(folder, tag) == [(n, pytest.approx(value, rel=1e-6)) for n, value in enumerate(expected, 1)]
    assert 0 < points(folder, "temi/marginal_entropy")[-1][1] <= math.log(8) + 1e-6


def test_a_fit_that_is_repeated_from_its_start_repeats_no_point(fresh, tiny_space, study_tools, points):
    task = FitTask(num_clusters=8, repeat=0)
    follow(fresh, tiny_space, task, study_tools.open_task, 2)
    follow(fresh, tiny_space, task, study_tools.open_task)
    assert [step for step, _ in points(fresh.tensorboard(task.name), "temi/loss")] == [1, 2, 3, 4]


def test_the_page_on_watching_names_every_curve(whole, fresh, tiny_space, study_tools, read):
    follow(fresh, tiny_space, FitTask(num_clusters=8, repeat=0), study_tools.open_task)
    folders = (whole[0].tensorboard("c00004"), fresh.tensorboard("c00008-r0"))
    tags = {tag for folder in folders for kind in ("scalars", "images") for tag in read(folder).Tags()[kind]}
    page = (Path(__file__).parents[2] / "docs/watching.md").read_text(encoding="utf-8")
    named = set()
    for cell in re.findall(r"^\| (`(?:train|rung|temi)/[^|]*) \|", page, flags=re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", cell)
        named |= {first, *(f"{first.partition('/')[0]}/{other}" for other in others)}
    assert named == tags


def test_utilization_is_of_all_clusters():
    progress = TemiProgress(epoch=1, epochs=2, loss=0.0, learning_rate=0.1, num_used=3, marginal_entropy=1.0)
    assert fit_points(progress, 4)["temi/utilization"] == 0.75


def test_where_curves_cannot_be_written_the_trial_says_so_once_and_goes_on(fresh, tiny_space, study_tools):
    (fresh.path / "tensorboard").write_text("in the way")
    events = follow(fresh, tiny_space, TASK, study_tools.open_task)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert notice.text.startswith("c00004 goes on without curves for TensorBoard: cannot write")
    assert [event.rung for event in events if isinstance(event, TrialReport)] == [0, 1]


def test_a_disk_that_fills_up_in_between_ends_the_curves_alone(fresh, tiny_space, study_tools, points, monkeypatch):
    from cedm_ray.watching import event_files

    written, append = [], event_files.EventFile._append

    def full(file, event):
        if len(written) == 6:
            raise OSError(28, "No space left on device")
        written.append(event)
        append(file, event)

    monkeypatch.setattr(event_files.EventFile, "_append", full)
    events = follow(fresh, tiny_space, TASK, study_tools.open_task)
    assert len([event for event in events if isinstance(event, Notice)]) == 1
    assert len([event for event in events if isinstance(event, TrialReport)]) == 2
    assert [step for step, _ in points(fresh.tensorboard("c00004"), "train/loss")] == [64, 128, 192, 256]


def test_the_generator_of_the_task_is_closed_with_it(fresh, tiny_space):
    closed = []

    def events():
        try:
            yield TrainProgress(images_seen=64, loss=1.0, learning_rate=1.0, skipped_steps=0)
            yield Notice(text="never")
        finally:
            closed.append(True)

    running = watched(fresh, tiny_space, TASK, events())
    next(running)
    running.close()
    assert closed == [True]


def test_curves_that_were_removed_are_made_again_as_far_as_the_records_go(done, tiny_space, read, points):
    result = publish(done, tiny_space, open_image_set(done.images))
    ended = [trial for trial in result.trials if trial.reports]
    assert len(ended) >= 3
    for trial in ended:
        expected = [(r.images_seen, pytest.approx(r.distance, rel=1e-6)) for r in trial.reports]
        assert points(done.tensorboard(trial.trial), "rung/distance") == expected
        assert SESSION_END_INFO_TAG in read(done.tensorboard(trial.trial)).summary_metadata
    for name, fit in done.fits().items():
        (point,) = points(done.tensorboard(name), "temi/utilization")
        assert point == (tiny_space.clustering.epochs, pytest.approx(fit.num_used / fit.num_clusters))
    before = sorted(path for path in (done.path / "tensorboard").rglob("*"))
    complete_curves(done, tiny_space)
    assert sorted(path for path in (done.path / "tensorboard").rglob("*")) == before


def test_a_trial_that_still_runs_is_left_to_its_process(whole, tiny_space, tmp_path):
    study = Study(tmp_path / "study")
    shutil.copytree(whole[0].path, study.path)
    shutil.rmtree(study.path / "tensorboard")
    # Its reports are there and no decision yet.
    assert not study.decisions()
    complete_curves(study, tiny_space)
    assert not study.tensorboard("c00004").exists()
    assert np.isfinite([report.distance for report in study.reports("c00004")]).all()
