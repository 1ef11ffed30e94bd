"""The command line: what it prints where, and the exit codes that tell the truth. Verbs that need Ray are not run."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cedm_ray import cli as door
from cedm_ray import durable
from cedm_ray.errors import LockedError, StorageError
from cedm_ray.search.study import Study
from cedm_ray.verbs import search

VERBS = ["search", "plan", "images", "features", "bound", "cluster", "train", "sample", "figure", "evaluate", "report"]
VERBS += ["status", "watch", "stop"]


def test_help_imports_nothing_heavy():
    asked = [[], *([verb] for verb in VERBS), *(["images", verb] for verb in ("inspect", "import", "export"))]
    code = (
        "import sys; import cedm_ray.cli as door; from click.testing import CliRunner\n"
        f"for arguments in {asked!r}:\n"
        "    result = CliRunner().invoke(door.cli, [*arguments, '--help'], obj={})\n"
        "    assert result.exit_code == 0, result.output\n"
        "    heavy = {'torch', 'ray', 'numpy', 'pydantic', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "    assert not heavy, (arguments, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_all_verbs():
    text = CliRunner().invoke(door.cli, ["-h"], obj={}).output
    assert all(f"  {verb} " in text for verb in VERBS)
    assert sorted(door.cli.commands) == sorted(VERBS)
    # What a verb does is said in one line of 80 columns, which click would cut.
    for group in ([], ["images"]):
        told = CliRunner().invoke(door.cli, [*group, "-h"], obj={}).output
        assert "..." not in told.partition("Commands:")[2]


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
        ("images",),
        ("images", "look"),
        ("images", "import", "p"),
        ("images", "import", "p", "--out", "o", "--on-bad", "hope"),
        ("images", "import", "p", "--out", "o", "--size", "0"),
        ("images", "import", "p", "--out", "o", "--background", "mauve"),
    ],
)
def test_bad_usage_ends_with_2_and_no_traceback(run, arguments):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err
    assert "Traceback" not in err


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

        monkeypatch.setattr(search, "open_study", open_and_act)

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


@pytest.mark.parametrize(("cause", "code"), [(door._Terminated(), 143), (KeyboardInterrupt(), 130), (OSError("oh"), 1)])
def test_a_signal_in_the_middle_of_a_call_into_ray_ends_the_command_as_one_elsewhere(run, begun, cause, code):
    """Python makes a SystemError of what the signal's handler raises there."""
    study, arguments, search_does = begun

    def inside_ray(*_, **__):
        raise SystemError("CoreWorker.wait returned a result with an exception set") from cause

    search_does(inside_ray)
    assert run(*arguments)[0] == code
    assert durable.read_record(study.path / "exit.json")["code"] == code


def test_debug_shows_the_traceback_and_the_message(run, begun):
    _, arguments, search_does = begun
    search_does(raises(StorageError("full", mend="make room")))
    _, _, err = run("--debug", *arguments)
    assert "Traceback" in err
    assert "error: full\n  to mend it: make room" in err


def test_an_error_obeys_no_name_in_it(run, begun):
    _, arguments, search_does = begun
    search_does(raises(StorageError("cannot read \x1b[31mred.png:\nit is \x07", mend="remove \x1b[31mred.png")))
    _, _, err = run(*arguments)
    assert err == "error: cannot read \\x1b[31mred.png:\nit is \\x07\n  to mend it: remove \\x1b[31mred.png\n"


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
