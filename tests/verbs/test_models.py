"""The verbs of one model. Those that need Ray are not run."""

import json

from cedm_ray.search.results import UNCONDITIONAL


def test_evaluate_prints_the_distance_of_the_last_rung(run, finished):
    code, out, _ = run("evaluate", finished.path, "--trial", UNCONDITIONAL, "--json", "-q")
    told = json.loads(out)
    assert code == 0
    assert told["distance"] == finished.reports(UNCONDITIONAL)[-1].distance
    code, out, _ = run("evaluate", finished.path, "--num", "8", "-q")
    assert code == 0
    assert dict(line.split(maxsplit=1) for line in out.splitlines())["num_samples"] == "8"
