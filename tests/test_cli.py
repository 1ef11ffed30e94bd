"""The command line: what it prints where, and the exit codes that tell the truth. Verbs that need Ray are not run."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from cedm_ray import cli as door
from cedm_ray import durable
from cedm_ray.errors import LockedError, StorageError
from cedm_ray.search.results import UNCONDITIONAL
from cedm_ray.search.study import Study

VERBS = ["search", "features", "bound", "train", "sample", "evaluate", "report"]


class Ended(BaseException):
    """Stands for os._exit: nothing of ours catches it."""


@pytest.fixture
def run(monkeypatch, capfd):
    """Call the door as a shell would; (exit code, standard output, standard error)."""

    def exit_with(code):
        raise Ended(code)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cedm-ray", *map(str, arguments)])
        monkeypatch.setattr(door.os, "_exit", exit_with)
        monkeypatch.setattr(door.signal, "signal", lambda *_: None)
        capfd.readouterr()
        with pytest.raises(Ended) as ended:
            door.main()
        return (ended.value.args[0], *capfd.readouterr())

    return call


@pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS)])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; import cedm_ray.cli as door; from click.testing import CliRunner\n"
        f"result = CliRunner().invoke(door.cli, {[*arguments, '--help']!r}, obj={{}})\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'ray', 'numpy', 'pydantic', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_all_verbs():
    text = CliRunner().invoke(door.cli, ["-h"], obj={}).output
    assert all(f"  {verb} " in text for verb in VERBS)
    assert sorted(door.cli.commands) == sorted(VERBS)


def test_version_and_help_end_well(run):
    assert run("--version")[0] == 0
    assert run("--help")[0] == 0
    assert run("sample", "--help")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance",),
        ("search",),
        ("search", "space.yaml"),
        ("search", "space.yaml", "--study", "s", "--sutdy", "t"),
        ("train", "space.yaml", "--study", "s", "--num-clusters", "1"),
        ("sample", "s", "--num", "0", "--out", "o"),
        ("sample", "s", "--num", "many", "--out", "o"),
        ("sample", "s"),
        ("evaluate", "s", "--num", "1"),
    ],
)
def test_bad_usage_ends_with_2_and_no_traceback(run, arguments):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_a_broken_space_ends_with_2_file_line_and_column(run, tmp_path):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {source: x}\nbuond: {alpha: 0.9}\n")
    code, out, err = run("search", tmp_path / "space.yaml", "--study", tmp_path / "study")
    assert (code, out) == (2, "")
    assert f"error: {tmp_path}/space.yaml:3:1: unknown key buond; did you mean bound?" in err
    # Nothing was begun, so there is no study to write the exit code to.
    assert not (tmp_path / "study").exists()


def test_a_space_without_images_says_how_to_name_them(run, tmp_path):
    (tmp_path / "space.yaml").write_text("name: x\nimages: {}\n")
    code, _, err = run("bound", tmp_path / "space.yaml", "--study", tmp_path / "study")
    assert code == 2
    assert "  to mend it: " in err


def test_a_missing_space_is_named_with_its_absolute_path(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", "nothing.yaml", "--study", "study")
    assert code == 2
    assert f"cannot read {tmp_path}/nothing.yaml: No such file" in err


@pytest.mark.parametrize("verb", ["sample", "evaluate", "report"])
def test_a_folder_that_is_no_study_ends_with_2_and_the_command_to_begin_one(run, tmp_path, verb):
    more = ["--out", tmp_path / "out"] if verb == "sample" else []
    code, out, err = run(verb, tmp_path, *more)
    assert (code, out) == (2, "")
    assert "is not a study" in err
    assert "cedm-ray search SPACE --study" in err


@pytest.mark.parametrize("seeds", ["", "x", "5-3", "-5", "1-", "1-2-3", "²", "1.5", "4294967296", "0-4294967296"])
def test_bad_seeds_end_with_2(run, finished, tmp_path, seeds):
    code, _, err = run("sample", finished.path, f"--seeds={seeds}", "--out", tmp_path / "out", "-q")
    assert code == 2
    assert "--seeds must be one number or A-B" in err


def test_sample_writes_what_it_is_told_and_prints_the_paths(run, finished, tmp_path):
    grid, out = tmp_path / "grid.png", tmp_path / "out.zip"
    code, printed, err = run("sample", finished.path, "--seeds", "5-8", "--grid", grid, "--out", out, "-q")
    assert (code, err) == (0, "")
    assert printed.splitlines() == [str(grid), str(out)]
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [f"0000000{seed}.png" for seed in (5, 6, 7, 8)]
    assert run("sample", finished.path, "--seeds", "7", "--out", tmp_path / "one", "-q")[0] == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["00000007.png"]


def test_sample_refuses_what_the_study_does_not_have(run, finished, tmp_path):
    out = ("--out", tmp_path / "out", "-q")
    code, _, err = run("sample", finished.path, "--cluster", "999", *out)
    assert code == 2
    assert "was not trained on a cluster 999" in err
    code, _, err = run("sample", finished.path, "--trial", "c09999", *out)
    assert code == 2
    assert UNCONDITIONAL in err


def test_a_place_that_cannot_be_written_ends_with_7(run, finished, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name in ("out.zip", "out.npz", "out"):
        code, _, err = run("sample", finished.path, "--num", "2", "--out", tmp_path / "file" / name, "-q")
        assert code == 7
        assert f"cannot write {tmp_path}/file/{name}" in err


def test_evaluate_prints_the_distance_of_the_last_rung(run, finished):
    code, out, _ = run("evaluate", finished.path, "--trial", UNCONDITIONAL, "--json", "-q")
    told = json.loads(out)
    assert code == 0
    assert told["distance"] == finished.reports(UNCONDITIONAL)[-1].distance
    code, out, _ = run("evaluate", finished.path, "--num", "8", "-q")
    assert code == 0
    assert dict(line.split(maxsplit=1) for line in out.splitlines())["num_samples"] == "8"


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


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A study whose `search` does what a test says; (study, arguments, the function that is to be set)."""
    (tmp_path / "space.yaml").write_text("name: x\nimages: {source: x}\n")
    study = Study(tmp_path / "study")
    study.settle({"begun": True})

    def search_does(action):
        def open_and_act(*_):
            door.click.get_current_context().find_root().obj["study"] = study
            return action()

        monkeypatch.setattr(door, "_open", open_and_act)

    return study, ("search", tmp_path / "space.yaml", "--study", study.path), search_does


def raises(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (StorageError("full", mend="make room"), 7, "full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (door._Terminated(), 143, "terminated"),
        (ZeroDivisionError("oh"), 1, "bug of ours"),
        (door.click.exceptions.Exit(4), 4, ""),
    ],
)
def test_exit_codes_are_written_into_the_study(run, begun, error, code, told):
    study, arguments, search_does = begun
    search_does(raises(error))
    got, out, err = run(*arguments)
    assert (got, out) == (code, "")
    assert told in err
    assert ("Traceback" in err) == (code == 1)
    assert durable.read_record(study.path / "exit.json")["code"] == code


def test_debug_shows_the_traceback_and_the_message(run, begun):
    _, arguments, search_does = begun
    search_does(raises(StorageError("full", mend="make room")))
    _, _, err = run("--debug", *arguments)
    assert "Traceback" in err
    assert "error: full\n  to mend it: make room" in err


def test_a_second_driver_does_not_write_over_the_first_ones_exit(run, begun):
    study, arguments, search_does = begun
    study.write_exit(0, "done")
    search_does(raises(LockedError("in use by process 1")))
    assert run(*arguments)[0] == 6
    assert durable.read_record(study.path / "exit.json")["code"] == 0


def test_an_exit_that_cannot_be_written_leaves_the_code_as_it_is(run, begun, monkeypatch):
    _, arguments, search_does = begun
    search_does(raises(StorageError("full")))
    monkeypatch.setattr(Study, "write_exit", lambda *_: raises(StorageError("full as well"))())
    assert run(*arguments)[0] == 7


def test_the_installed_command_is_the_door():
    script = Path(sys.executable).with_name("cedm-ray")
    done = subprocess.run([script, "report", "/nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not a study" in done.stderr
