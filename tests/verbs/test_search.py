"""What `report` prints and writes; `search` needs Ray and is run by test_end_to_end."""

import json
from pathlib import Path

import numpy as np
import yaml

from cedm_ray import durable
from cedm_ray.search.study import FitRecord

SPACES = Path(__file__).parents[2] / "search_spaces"


def test_report_prints_the_result_and_writes_the_page(run, done):
    code, out, err = run("report", done.path)
    assert (code, err) == (0, "")
    assert "<- C_V" in out
    assert out.splitlines()[-1] == f"Report: {done.report}"
    assert done.report.exists()
    code, out, _ = run("report", done.path, "--json")
    assert code == 0
    assert json.loads(out) == durable.read_record(done.path / "result.json")


def test_a_study_without_a_bound_ends_with_5(run, fresh):
    code, out, err = run("report", fresh.path)
    assert (code, out) == (5, "")
    assert "has no bound yet" in err


def test_a_damaged_record_ends_with_8_and_names_it(run, done):
    path = min((done.path / "decisions").iterdir())
    path.write_bytes(path.read_bytes()[:-5])
    code, _, err = run("report", done.path)
    assert code == 8
    assert str(path) in err


def test_a_search_without_a_space_and_without_an_earlier_study_says_what_it_needs(run, tmp_path):
    code, out, err = run("search", "--study", tmp_path / "study")
    assert (code, out) == (2, "")
    assert "neither SPACE nor --like" in err


def test_a_dry_run_starts_and_writes_nothing(run, tmp_path, digit_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("search", SPACES / "digits.yaml", "--study", "study", "--images", digit_folder, "--dry-run")
    assert (code, err) == (0, "")
    assert "The search: after the bound's fits, 6 C" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_study_that_exists_leaves_how_it_ended(run, done, digit_folder, tmp_path):
    done.write_exit(143, "terminated")
    before = {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()}
    like = ("search", "--like", done.path, "--images", digit_folder, "--study")
    code, out, _ = run(*like, tmp_path / "new", "--dry-run", "--json")
    assert code == 0
    told = json.loads(out)["search"]
    assert told["rate"]["source"].startswith("measured in this study")
    assert told["candidates"] == 3
    assert not (tmp_path / "new").exists()
    assert {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()} == before


def test_like_a_study_without_a_bound_ends_with_2(run, fresh, digit_folder, tmp_path):
    code, _, err = run("search", "--like", fresh.path, "--images", digit_folder, "--study", tmp_path / "new")
    assert code == 2
    assert "no C_max" in err


def test_a_search_of_which_no_c_passes_the_bound_ends_with_5_and_says_what_to_change(run, fresh, tiny_space, tmp_path):
    """The search is over with its bound, and Ray is not started."""
    fresh.fit("c00004-r0").with_suffix(".json").unlink()
    for size in (2, 4):
        record = FitRecord(num_clusters=size, repeat=0, num_used=1, loss=0.0, seconds=0.0)
        fresh.write_fit(record, f"c{size:05d}-r0", {"labels": np.zeros(300, np.int32)}, {"method": "temi"})
    place = tmp_path / "space.yaml"
    place.write_text(yaml.safe_dump(tiny_space.model_dump(mode="json")))
    for verb in ("search", "bound"):
        code, out, err = run(verb, place, "--study", fresh.path, "-q")
        assert code == 5
        assert "lower bound.alpha, in another study" in err
        assert ("C_V was not found: no number of clusters passes the bound." in out) == (verb == "search")
        reason = durable.read_record(fresh.path / "result.json")["bound"]["reason"]
        assert f"error: {reason}\n" in err


def test_a_search_of_which_some_trials_failed_has_its_answer_and_ends_with_4(run, done, tiny_space, tmp_path):
    """Fault 3, its end: attempts exhausted are data, and how to try them again is said."""
    place = tmp_path / "space.yaml"
    place.write_text(yaml.safe_dump(tiny_space.model_dump(mode="json")))
    code, out, _ = run("search", place, "--study", done.path)
    assert (code, "killed twice" in out) == (0, False)
    best = durable.read_record(done.path / "result.json")["best"]
    other = next(name for name in done.trials() if name not in (best, "unconditional"))
    done.write_failure(other, "killed twice")
    code, out, err = run("search", place, "--study", done.path)
    assert code == 4
    assert "killed twice" in out
    assert "<- C_V" in out
    assert f"remove their records in {done.path / 'failures'}" in err
