"""What `report` prints and writes; `search` needs Ray and is run by test_end_to_end."""

import json

from cedm_ray import durable


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
