"""What `plan` prints, and that it starts and writes nothing."""

import json
from pathlib import Path

import pytest

SPACES = Path(__file__).parents[2] / "search_spaces"


def test_plan_prints_rungs_and_shares(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("plan", SPACES / "digits.yaml")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "at 8 x 8 pixels" in lines[0]
    assert lines[1].split()[:2] == ["kimg", "images"]
    assert lines[2].rstrip().endswith("%")
    assert list(tmp_path.iterdir()) == []


def test_plan_as_json_adds_up(run):
    code, out, _ = run("plan", SPACES / "new_dataset.yaml", "--json", "--image-size", "32")
    told = json.loads(out)
    assert code == 0
    assert told["image_size"] == 32
    assert sum(rung["images"] for rung in told["rungs"]) == 10_000_000
    assert told["training_flops"] == 3 * told["forward_flops"] * 10_000_000
    for rung in told["rungs"]:
        cost = rung["sampling_flops"] + rung["detector_flops"]
        assert rung["share"] == pytest.approx(cost / rung["training_flops"])


def test_a_template_without_size_and_images_asks_for_the_size(run, tmp_path):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {}\n")
    code, out, err = run("plan", tmp_path / "space.yaml")
    assert (code, out) == (2, "")
    assert "--image-size" in err


def test_the_first_image_gives_the_size(run, tmp_path, digit_folder):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {}\nnetwork: {channel_mult: [1], model_channels: 4}\n")
    code, out, _ = run("plan", tmp_path / "space.yaml", "--images", digit_folder)
    assert code == 0
    assert "at 8 x 8 pixels" in out
