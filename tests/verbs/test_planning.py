"""What `plan` prints, and that it starts and writes nothing."""

import json
import re
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


@pytest.mark.parametrize(("rule", "told"), [("asha", True), ("halving", False)])
def test_plan_says_what_its_ranges_are_where_it_has_any(run, tmp_path, rule, told):
    text = (SPACES / "digits.yaml").read_text().replace("rule: halving", f"rule: {rule}")
    (tmp_path / "space.yaml").write_text(text)
    _, out, _ = run("plan", tmp_path / "space.yaml")
    assert (re.search(r"\d \(\d[\d.]*-\d[\d.]*\)", out) is not None) is told
    assert ("5th and 95th percentile" in out) is told


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
    assert "5 C, 2 go on from rung 1, then 1 go on from rung 2" in out
    assert "Trained: 210 million images for all C, 100 for the unconditional model." in out
    assert "After it: 100 million for the winner beyond the last rung, 150,000 images generated" in out
    code, out, _ = run("plan", SPACES / "cifar10.yaml", "--gpus", "8xA100", "--json")
    told = json.loads(out)["search"]
    # All at once: the longest is the winner's, 200 million images at 579 a second; evaluations come to it.
    assert told["wall_h"]["mean"] == pytest.approx(200e6 / 579 / 3600, rel=0.01)
    assert told["gpu_h"]["mean"] == pytest.approx(410e6 / 579 / 3600, rel=0.02)
    assert told["final_h"]["mean"] == pytest.approx(100e6 / 579 / 3600, rel=0.03)
    assert told["gpu_h"]["mean"] == pytest.approx(told["trial_h"]["mean"])


def test_without_finals_nothing_is_said_of_them(run):
    code, out, _ = run("plan", SPACES / "new_dataset.yaml", "--gpus", "A100")
    assert (code, "After it" in out, "evaluations included." in out) == (0, False, True)


def test_more_seeds_and_refinements_are_told(run, tmp_path):
    text = (SPACES / "cifar10.yaml").read_text()
    text = text.replace("finals:\n", "finals:\n  finalists: 2\n  seeds: 3\n").replace(
        "count: 5", "refine: 2\n  count: 5"
    )
    (tmp_path / "space.yaml").write_text(text)
    code, out, _ = run("plan", tmp_path / "space.yaml", "--gpus", "8xA100")
    assert (code, "5 C and at most 4 more by refinement" in out) == (0, True)
    # Two more of each of two finalists, to the last rung.
    assert "After it: 400 million images for more seeds of finalists, 100 million for the winner" in out


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "ffhq64", "ffhq128", "afhq64"])
def test_what_the_files_promise_is_what_is_counted(run, name):
    code, out, _ = run("plan", SPACES / f"{name}.yaml", "--gpus", "8xA100")
    assert code == 0
    time = re.search(r"Time: (\S+) GPU-hours, (\S+) h on the clock, evaluations and the (\S+) after the search", out)
    storage = re.search(r"Storage: (\S+ GB)", out)[1]
    page, space = (" ".join(path.read_text().replace("\n# ", " ").split()) for path in _files(name))
    assert (
        f"Cost: {time[1]} A100-hours, the winner's last {time[3]} among them, {time[2]} h on 8 GPUs, {storage}" in page
    )
    assert f"{time[1]} A100-hours, {time[3]} of them for the winner after the search" in space


def _files(name):
    return SPACES.parent / "jobs" / f"{name}.sh", SPACES / f"{name}.yaml"


def test_what_the_template_promises_is_what_is_counted(run):
    code, out, _ = run("plan", SPACES / "new_dataset.yaml", "--gpus", "A100", "--json")
    told = json.loads(out)["search"]
    page, space = (path.read_text() for path in _files("new_dataset"))
    assert code == 0
    assert f"{told['gpu_h']['low']:.0f} to {told['gpu_h']['high']:.0f} A100-hours" in page
    assert f"{told['storage_bytes'] / 1e9:.1f} GB of checkpoints" in page
    assert f"some {(told['images']['mean'] + told['baseline_images']) / 1e6:.0f} million training images" in space
    assert told["wall_h"]["mean"] == pytest.approx(48, abs=6)


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


@pytest.mark.parametrize(
    ("trials", "how"), [(17, "all drawn"), (18, "the first 17 drawn, then proposed by TPE")], ids=["drawn", "proposed"]
)
def test_what_proposals_are_made_of_is_told(run, tmp_path, trials, how):
    also = "also: {training.learning_rate: {low: 1e-4, high: 1e-2}, clustering.gamma: [0.6, 0.8]}"
    text = (SPACES / "cifar10.yaml").read_text()
    text = text.replace("candidates:\n", f"candidates:\n  {also}\n  proposals: tpe\n  num_trials: {trials}\n")
    (tmp_path / "space.yaml").write_text(text)
    code, out, _ = run("plan", tmp_path / "space.yaml", "--gpus", "8xA100")
    assert (code, f"{trials} trials of C with learning_rate, gamma ({how})" in out) == (0, True)
    assert f"all {trials} candidates to the last rung" in out


def test_how_far_trials_differ_in_cost_is_told_where_networks_are_searched(run, tmp_path):
    also = "also: {network.num_blocks: [2, 4], training.learning_rate: [1e-3, 2e-3]}"
    text = (SPACES / "cifar10.yaml").read_text().replace("candidates:\n", f"candidates:\n  {also}\n")
    (tmp_path / "space.yaml").write_text(text)
    code, out, _ = run("plan", tmp_path / "space.yaml", "--gpus", "8xA100")
    told = re.search(
        r"One of these trials takes (\S+) to 1 times the operations of .*, (\S+) on average .*\(num_blocks\)", out
    )
    assert code == 0
    # With 2 of 4 blocks a level of the encoder has 2 of 4, and one of the decoder 3 of 5.
    assert 0.5 < float(told[1]) < 0.6
    assert float(told[2]) == pytest.approx((float(told[1]) + 1) / 2, abs=0.01)
    assert "Storage: at most " in out
    code, out, _ = run("plan", SPACES / "cifar10.yaml", "--gpus", "8xA100")
    assert (code, "One of these trials takes" in out) == (0, False)
