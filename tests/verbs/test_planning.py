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


def test_plan_tells_images_hours_and_saving(run):
    code, out, _ = run("plan", SPACES / "cifar10.yaml", "--gpus", "8xA100")
    assert code == 0
    assert "8 x A100: at most 8 trials at once" in out
    assert "579 images/s for each GPU" in out
    assert "the 17 C of the paper's own grid to the last rung would be 1,700 million" in out
    # All at once: the longest is a whole budget, 100 million images at 579 a second and three evaluations.
    assert "48.1 h on the clock" in out
    code, out, _ = run("plan", SPACES / "cifar10.yaml", "--gpus", "8xA100", "--json")
    told = json.loads(out)["search"]
    assert told["wall_h"]["mean"] == pytest.approx(100e6 / 579 / 3600, rel=0.01)
    assert told["gpu_h"]["mean"] == pytest.approx(told["trial_h"]["mean"])


def test_speeds_that_were_given_or_measured_come_before_the_table(run, done):
    code, out, _ = run("plan", SPACES / "cifar10.yaml", "--gpus", "2xA100", "--rate", "1000")
    assert (code, "1,000 images/s for each GPU: as given by --rate" in out) == (0, True)
    code, out, _ = run("plan", SPACES / "digits.yaml", "--image-size", "8", "--study", done.path)
    assert (code, "measured in this study, for each trial on CPUs" in out) == (0, True)


def test_where_nothing_is_known_the_way_to_know_is_told(run, monkeypatch):
    code, out, _ = run("plan", SPACES / "cifar10.yaml", "--gpus", "4xRTX")
    assert code == 0
    assert "nothing is known of the speed" in out
    assert "--rate" in out


def test_a_trial_that_does_not_fit_is_refused(run, tmp_path):
    text = (SPACES / "cifar10.yaml").read_text().replace("workers: 1 #", "workers: 4 #")
    (tmp_path / "space.yaml").write_text(text)
    code, out, err = run("plan", tmp_path / "space.yaml", "--gpus", "2xA100")
    assert (code, out) == (2, "")
    assert "one trial holds 4 and there are 2 A100" in err
    code, out, _ = run("plan", tmp_path / "space.yaml", "--gpus", "9xA100")
    assert (code, "at most 2 trials at once, 4 GPU each" in out) == (0, True)
