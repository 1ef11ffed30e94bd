"""What is published of a study is the study's, and publishing again changes nothing."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.report.publish import publish, result_json
from cedm_ray.search.showcase import read_showcase


def test_nothing_is_written_while_the_bound_is_unknown(fresh, tiny_space):
    before = sorted(fresh.path.rglob("*"))
    assert publish(fresh, tiny_space, open_image_set(fresh.images)) is None
    assert sorted(fresh.path.rglob("*")) == before


@pytest.fixture
def published(done, tiny_space):
    return done, publish(done, tiny_space, open_image_set(done.images))


def test_gain_is_that_of_the_last_reports(published):
    study, result = published
    last = {name: study.reports(name)[-1] for name in study.trials()}
    assert result.gain == 1 - last[result.best].distance / last["unconditional"].distance
    completed = [n for n, report in last.items() if report.rung == 1 and n != "unconditional"]
    assert result.best == min(completed, key=lambda name: last[name].distance)


def test_table_page_and_json_tell_the_same(published):
    study, result = published
    rows = list(csv.DictReader(study.table.read_text(encoding="utf-8").splitlines()))
    assert [row["trial"] for row in rows] == [trial.trial for trial in result.trials]
    told = durable.read_record(study.path / "result.json")
    assert told["best"] == result.best
    assert told["best_num_clusters"] == result.best_num_clusters == int(result.best[1:])
    assert told["bound"]["c_max"] == result.bound.c_max
    for row, trial in zip(rows, told["trials"], strict=True):
        assert row["status"] == trial["status"]
        assert [float(row[f"distance_at_{k}_kimg"] or "nan") for k in ("0.256", "0.512")][: len(trial["reports"])] == [
            report["distance"] for report in trial["reports"]
        ]
    page = study.report.read_text(encoding="utf-8")
    assert f"{result.best_num_clusters:,}" in page
    assert "<script" not in page


def test_result_json_is_plain_json(published):
    _, result = published
    plain = result_json(result)
    assert json.loads(json.dumps(plain, allow_nan=False))["gain"] == result.gain
    assert len(plain["trials"]) == len(result.trials)


def test_picture_is_the_grid_of_samples(published):
    study, _ = published
    grid = read_showcase(study).grid
    with Image.open(study.sample_grid) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # Eight to a row; a pixel of a digit is drawn four wide, and two lie between the images.
    assert pixels.shape == (8 * 32 + 7 * 2, 8 * 32 + 7 * 2, 3)
    for index, image in enumerate(grid):
        top, left = index // 8 * 34, index % 8 * 34
        assert np.array_equal(pixels[top : top + 32 : 4, left : left + 32 : 4], image.transpose(1, 2, 0))


def test_publishing_again_writes_the_same_bytes(published, tiny_space):
    study, _ = published
    places = [study.report, study.table, study.sample_grid, study.path / "result.json"]
    before = [place.read_bytes() for place in places]
    publish(study, tiny_space, open_image_set(study.images))
    assert [place.read_bytes() for place in places] == before


def test_a_search_without_a_best_model_is_published_without_pictures(published, tiny_space):
    study, _ = published
    study.showcase.unlink()
    for place in (study.report, study.table, study.sample_grid):
        place.unlink()
    assert publish(study, tiny_space, open_image_set(study.images)) is not None
    assert study.report.exists()
    assert study.table.exists()
    assert not study.sample_grid.exists()
