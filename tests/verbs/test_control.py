"""What status, watch and stop print, and how they end."""

import json

import pytest

from cedm_ray.lock import Owner, exclusive_lock
from cedm_ray.search import status as reading
from cedm_ray.search import stop as stopping
from cedm_ray.verbs import control


def test_status_is_a_table_with_the_driver_below(run, done):
    code, out, err = run("status", done.path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("tiny: ")
    assert lines[1].startswith("C_max = ")
    header = next(line for line in lines if "r_C" in line)
    assert header.split()[:4] == ["C", "C^u", "r_C", "rung"]
    assert "images/s" in header
    assert "trained to 0.512 kimg" in out
    hours = sum(report.train_s + report.evaluate_s for name in done.trials() for report in done.reports(name)) / 3600
    assert f"trials took {hours:.3g} h; those that were stopped or failed " in out
    assert " h; none held a GPU" in out
    assert lines[-1].startswith("nobody drives it")
    done.write_exit(143, "terminated")
    assert run("status", done.path)[1].splitlines()[-1].endswith("the last command ended with 143: terminated")


def test_status_as_json_is_the_standing(run, done):
    code, out, _ = run("status", done.path, "--json")
    assert code == 0
    told = json.loads(out)
    assert told == json.loads(json.dumps(reading.read_standing(done).to_json()))
    assert told["driver"] is None


def test_status_names_who_drives(run, fresh):
    with exclusive_lock(fresh.lock):
        code, out, _ = run("status", fresh.path)
    assert code == 0
    assert "the bound is searched for, 1 fit done" in out
    assert out.splitlines()[-1].startswith("driven by process ")


@pytest.mark.parametrize("verb", ["status", "watch", "stop"])
def test_no_study_ends_with_2(run, tmp_path, verb):
    code, out, err = run(verb, tmp_path)
    assert (code, out) == (2, "")
    assert "is not a study" in err


def test_watch_prints_a_line_for_each_change_until_nobody_drives(run, fresh, monkeypatch):
    held = exclusive_lock(fresh.lock)
    held.__enter__()
    turns = []

    def sleep(seconds):
        if seconds == 0.1:
            return
        turns.append(seconds)
        if len(turns) == 3:
            fresh.write_candidates([4])
        if len(turns) == 5:
            held.__exit__(None, None, None)

    monkeypatch.setattr(control, "_LAST_WORDS_S", 0.0)
    monkeypatch.setattr(control.time, "sleep", sleep)
    code, out, err = run("watch", fresh.path, "--every", "7")
    assert (code, err) == (0, "")
    assert turns == [7] * 5
    lines = out.splitlines()
    assert lines[0] == "tiny: the bound is searched for, 1 fit done"
    assert lines[1] == "tiny: the bound is searched for, 1 fit done; 0 of 2 trials ended"
    assert lines[-1].startswith("nobody drives it")


def test_watch_of_a_study_that_nobody_drives_prints_where_it_stands(run, done, monkeypatch):
    monkeypatch.setattr(control.time, "sleep", lambda seconds: pytest.fail("nothing is to be waited for"))
    assert run("watch", done.path)[1] == run("status", done.path)[1]


def test_stop_says_whom_it_ended(run, done, monkeypatch):
    code, out, _ = run("stop", done.path)
    assert code == 0
    assert "nothing to stop" in out
    owner = Owner(host="far", process=7, started="2026-01-01T00:00:00+00:00", mark="x")
    monkeypatch.setattr(stopping, "stop_driver", lambda study, timeout_s: owner)
    code, out, _ = run("stop", done.path)
    assert (code, out.startswith("process 7 on far")) == (0, True)


def test_a_driver_that_does_not_end_is_75(run, fresh, monkeypatch):
    with exclusive_lock(fresh.lock):
        # Of another machine, so that the request is a record that nobody reads here.
        monkeypatch.setattr(stopping, "_signalled", lambda owner: False)
        code, out, err = run("stop", fresh.path, "--timeout", "0")
    assert (code, out) == (75, "")
    assert "still drives" in err
    # Whoever asked has not driven the study, and how that ended is not his to say.
    assert fresh.read_exit() is None


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (600, "10 min"), (9000, "2.5 h"), (3 * 86400, "3.0 days")])
def test_durations_are_told_in_the_unit_that_fits(seconds, text):
    assert control.duration(seconds) == text


def test_status_has_a_column_for_every_setting_that_is_searched(run, proposed):
    code, out, _ = run("status", proposed.path)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    header = next(line for line in lines if line[:1] == ["C"])
    assert header[:4] == ["C", "gamma", "guidance", "C^u"]
    one = proposed.proposals()[0]
    values = dict(one.settings)
    row = next(line for line in lines if line[:2] == ["3", "p1"])
    assert row[2:4] == [f"{values['clustering.gamma']:g}", f"{values['sampling.guidance']:g}"]
    assert next(line for line in lines if line[:1] == ["none"])[1:3] == ["–", "–"]
