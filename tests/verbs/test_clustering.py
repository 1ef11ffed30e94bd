"""The verbs that need no generative model. They need Ray: test_end_to_end runs them, here is what comes before it."""

import pytest


@pytest.mark.parametrize("verb", ["features", "bound"])
def test_images_that_are_not_there_end_with_3_before_ray_starts(run, tmp_path, verb):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {source: nowhere}\n")
    code, out, err = run(verb, tmp_path / "space.yaml", "--study", tmp_path / "study", "-q")
    assert (code, out) == (3, "")
    assert "nowhere" in err
