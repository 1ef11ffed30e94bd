"""The verb of one model, as far as it goes without Ray: test_end_to_end and tests/distributed train."""


def test_a_trial_of_images_that_are_not_there_ends_with_3_before_ray_starts(run, tmp_path):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {source: nowhere}\n")
    code, out, err = run("train", tmp_path / "space.yaml", "--study", tmp_path / "study", "-q")
    assert (code, out) == (3, "")
    assert "nowhere" in err


def test_a_finished_trial_prints_its_rungs_again(run, done, tiny_space, tmp_path):
    import yaml

    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(tiny_space.model_dump(mode="json")))
    code, out, err = run("train", space, "--study", done.path)
    assert (code, err) == (0, "")
    header, *rows, end = out.splitlines()
    assert header.split()[0] == "kimg"
    assert [row.split()[1] for row in rows] == [f"{r.distance:.4g}" for r in done.reports("unconditional")]
    assert end.startswith("unconditional trained to")
