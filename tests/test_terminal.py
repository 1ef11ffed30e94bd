"""What is shown: bars for people, lines for logs, nothing where nothing is wanted; results on standard output."""

import contextlib
import dataclasses
import io
import re
from datetime import UTC, datetime

import pytest
from rich.console import Console

from cedm_ray import terminal
from cedm_ray.clustering.bound import BoundResult
from cedm_ray.metrics.agreement import Agreement, ClusterSizes
from cedm_ray.search.results import (
    FEATURES,
    ClusteringSummary,
    Notice,
    Progress,
    StudyResult,
    TrialReport,
    TrialResult,
    trial_name,
)
from cedm_ray.terminal import ClusteringTable, Display, answer, print_result, print_table, trial_label


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


def display(*, quiet=False, is_terminal=False, table=None):
    """A display that writes into memory, and its text so far."""
    shown, file = Display(quiet=quiet, table=table), io.StringIO()
    shown.console = Console(file=file, force_terminal=is_terminal, width=100, color_system=None)
    return shown, file.getvalue


def undated(text):
    """Lines of a log without their dates."""
    return re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  ", "", text)


def step(done, task="c00020", total=100.0, **more):
    return Progress(task=task, done=done, total=total, unit="images", **more)


def test_without_a_terminal_a_line_comes_every_30_seconds_with_the_time_left(clock):
    shown, text = display()
    with shown:
        shown(step(0))
        clock.now += 29
        shown(step(20))
        assert text() == ""
        clock.now += 11
        # 40 of 100 in 40 s: 60 s are left.
        shown(step(40, detail="loss 0.5, 1 images/s"))
        assert undated(text()) == "c00020: 40 of 100 images, loss 0.5, 1 images/s, 1 min 0 s left\n"
        clock.now += 29
        shown(step(70))
        assert len(text().splitlines()) == 1


def test_a_milestone_has_its_line_at_once(clock):
    shown, text = display()
    with shown:
        shown(step(0))
        clock.now += 4
        shown(step(20, milestone=True))
        assert undated(text()) == "c00020: 20 of 100 images, 16 s left\n"
        clock.now += 29
        shown(step(40))
        assert len(text().splitlines()) == 1
        clock.now += 1
        shown(step(50))
        assert len(text().splitlines()) == 2


def test_every_task_that_runs_has_lines_of_its_own(clock):
    shown, text = display()
    with shown:
        shown(step(0))
        shown(step(0, task="c00030", total=None))
        shown(step(5, task="done"))
        shown(step(5, task="done", ended=True))
        clock.now += 31
        shown(step(1234567, task="c00030", total=None))
        shown(step(1))
    assert undated(text()) == "c00030: 1,234,567 images\nc00020: 1 of 100 images, 51 min 9 s left\n"


def test_many_tasks_at_once_do_not_flood_a_log(clock):
    shown, text = display()
    tasks = [f"c{number:05d}" for number in range(64)]
    with shown:
        for _ in range(4 * 60 + 1):
            for task in tasks:
                shown(step(clock.now - 1000, total=1e6, task=task))
            clock.now += 1
    # Four minutes, and on average eight lines in every half a minute.
    assert len(text().splitlines()) == 8 * 8
    assert {line.split()[2] for line in text().splitlines()} == {f"{task}:" for task in tasks}


def test_a_task_that_is_begun_again_counts_from_there(clock):
    shown, text = display()
    with shown:
        shown(step(80))
        clock.now += 31
        # A resumed run did 10 in 31 s, and 10 are left.
        shown(step(90))
        assert undated(text()) == "c00020: 90 of 100 images, 31 s left\n"
        # Its process died, and another one goes on from a checkpoint.
        shown(step(50))
        clock.now += 50
        shown(step(75))
    assert undated(text().splitlines()[-1]) == "c00020: 75 of 100 images, 50 s left"


def test_a_line_begins_with_its_date_and_time_and_the_offset_of_its_clock(clock):
    shown, text = display()
    with shown:
        before = datetime.now(UTC)
        shown(Notice(text="bound found"))
    date, time, said = re.fullmatch(r"(\S+) (\S+)  (.*)\n", text()).groups()
    assert said == "bound found"
    assert abs((datetime.fromisoformat(f"{date} {time}") - before).total_seconds()) < 10


def test_a_log_is_plain_lines_whatever_the_environment_says_of_colors(clock, monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Display(quiet=False) as shown:
        shown(step(0))
        clock.now += 40
        shown(step(40))
        shown(step(100, ended=True))
    written = capfd.readouterr().err
    assert undated(written) == "c00020: 40 of 100 images, 1 min 0 s left\n"
    assert not set(written) & {"\r", "\x1b", "\b"}


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (93900, "26 h 5 min")]
)
def test_a_duration_is_said_in_two_units(seconds, said):
    assert terminal._duration(seconds) == said


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_notice_comes_at_once_and_as_it_is(clock, is_terminal):
    shown, text = display(is_terminal=is_terminal)
    with shown:
        shown(Notice(text="left out [bold]a[/bold].png :smile: " + "x" * 200))
        assert "left out [bold]a[/bold].png :smile: " + "x" * 200 + "\n" in text()


def test_a_notice_obeys_no_name_in_it():
    shown, text = display(is_terminal=True)
    with shown:
        shown(Notice(text="left out \x1b[31mred\x07.png: why\nand more"))
        # The console's own codes come before and after.
        assert "left out \\x1b[31mred\\x07.png: why\nand more\n" in text()


def test_quiet_shows_nothing(clock):
    for is_terminal in (False, True):
        shown, text = display(quiet=True, is_terminal=is_terminal)
        with shown:
            shown(Notice(text="something"))
            shown(step(1))
            clock.now += 100
            shown(step(2))
        assert text() == ""


def test_bars_come_and_go_with_their_tasks():
    shown, _ = display(is_terminal=True)
    with shown:
        shown(step(1, task="[c]"))
        shown(step(2, task="other", total=None))
        shown(step(50, task="[c]", detail="loss [1]"))
        (first, second) = shown._bars.tasks
        assert (first.completed, first.total) == (50, 100)
        assert (second.completed, second.total) == (2, None)
        assert "50 of 100 images" in first.fields["detail"]
        shown(step(1, task="[c]", ended=True))
        shown(step(1, task="never begun", ended=True))
        assert [task.description for task in shown._bars.tasks] == ["other"]


def clustering(name="temi-c00100-r0", used=98, passed=True, truth=None, seconds=12.34):
    return ClusteringSummary(
        name=name,
        method="temi",
        num_clusters=100,
        num_used=used,
        sizes=ClusterSizes(kl_from_uniform=0.0312, perplexity=95.06, smallest=7, largest=600),
        agreement=truth,
        seconds=seconds,
        passed=passed,
    )


def test_clusterings_come_as_lines_of_a_table_each_once(capsys):
    table = ClusteringTable()
    shown, text = display(table=table)
    with shown:
        shown(clustering())
        shown(clustering("temi-c00100-lower-r0", passed=None, seconds=None))
        shown(clustering())
    table.show(clustering("kmeans-c00100", passed=False))
    assert text() == ""
    assert capsys.readouterr().out == (
        "     C   C^u    r_C smallest largest perplexity    KL       s\n"
        "   100    98 0.9800        7     600       95.1 0.031    12.3  temi-c00100-r0, passes\n"
        "   100    98 0.9800        7     600       95.1 0.031       –  temi-c00100-lower-r0\n"
        "   100    98 0.9800        7     600       95.1 0.031    12.3  kmeans-c00100, fails\n"
    )


def test_with_labels_the_table_says_how_well_they_agree(capsys):
    table = ClusteringTable()
    table.show(clustering(truth=Agreement(accuracy=0.9459, nmi=0.8859, ami=0.8858, ari=0.88566)))
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[7:11] == ["ACC", "NMI", "ANMI", "ARI"]
    assert line.split()[7:11] == ["94.59", "88.59", "88.58", "88.57"]
    assert header.index("       s") + 8 == line.index("12.3") + 4


def test_columns_keep_apart_where_everything_agrees(capsys):
    table = ClusteringTable()
    table.show(clustering(truth=Agreement(accuracy=1.0, nmi=1.0, ami=1.0, ari=1.0)))
    assert capsys.readouterr().out.splitlines()[1].split()[7:11] == ["100.00"] * 4


def test_the_table_is_on_standard_output_even_while_it_is_turned_elsewhere(capsys):
    table = ClusteringTable()
    with contextlib.redirect_stdout(io.StringIO()) as elsewhere:
        table.show(clustering())
    assert elsewhere.getvalue() == ""
    assert "temi-c00100-r0" in capsys.readouterr().out


def test_without_a_table_a_clustering_is_a_notice_and_quiet_hides_that_alone(capsys):
    shown, text = display()
    with shown:
        shown(clustering())
    assert undated(text()) == "C = 100: 98 clusters used in 12.3 s (temi-c00100-r0)\n"
    shown, text = display(quiet=True, table=ClusteringTable())
    with shown:
        shown(clustering())
    assert text() == ""
    assert "0.9800" in capsys.readouterr().out


def test_a_table_is_right_aligned_but_for_its_last_column(capsys):
    print_table("title", ["C", "r_C", "how it ended"], [[2, None, "well"], [1000, 0.5, "not well"]])
    assert capsys.readouterr().out == ("title\n   C  r_C  how it ended\n   2    –  well\n1000  0.5  not well\n")


def trial(num_clusters, status, *distances, reason="trained", used=None, name=None):
    name = name or trial_name(num_clusters)
    reports = tuple(
        TrialReport.played(name, rung, distance, images_seen=1000, num_samples=8)
        for rung, distance in enumerate(distances)
    )
    return TrialResult(
        trial=name, num_clusters=num_clusters, num_used=used, status=status, reason=reason, reports=reports
    )


def result(best="c00004", gain=0.25, baseline=(12.0, 8.0), four=(9.0, 6.0)):
    return StudyResult(
        name="x",
        num_images=10,
        image_size=8,
        extractor="pixels",
        metric="FD[pixels]",
        num_samples=1000,
        rungs_kimg=(0.5, 1.0),
        bound=BoundResult(c_max=8, alpha=0.96, censored=False, reason="C_max = 8: 8 of 8 used", points=()),
        trials=(
            trial(None, "completed", *baseline),
            trial(4, "completed", *four, used=4),
            trial(8, "stopped", 10.0, reason="stopped at 0.5 kimg", used=7),
        ),
        best=best,
        gain=gain,
        stage_s={},
    )


def test_a_result_is_the_bound_the_table_and_the_answer(capsys):
    print_result(result())
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (
        "C_max = 8: 8 of 8 used\n"
        "\n"
        "FD[pixels] of 1,000 samples at\n"
        "   C  C^u    r_C  0.5 kimg  1 kimg  how it ended\n"
        "none    –      –        12       8  trained\n"
        "   4    4  1.000         9       6  trained  <- C_V\n"
        "   8    7  0.875        10       –  stopped at 0.5 kimg\n"
        "\n"
        "C_V = 4: FD[pixels] 6, 25.0% lower than the unconditional model's 8 at the same budget.\n"
    )


def test_a_trial_on_features_is_a_row_by_its_name_and_changes_no_answer(capsys):
    plain = result()
    more = dataclasses.replace(plain, trials=(*plain.trials, trial(None, "completed", 3.0, 2.0, name=FEATURES)))
    print_result(more)
    lines = capsys.readouterr().out.splitlines()
    assert "features    –      –         3       2  trained" in lines
    assert lines[-1] == answer(plain)


def test_answers_without_gain_with_loss_and_without_best():
    assert answer(result(gain=-0.5, four=(9.0, 12.0))) == (
        "C_V = 4: FD[pixels] 12, 50.0% higher than the unconditional model's 8 at the same budget."
    )
    assert "no unconditional model of the same budget" in answer(result(gain=None))
    none = result(best=None, gain=None)
    assert answer(none).startswith("C_V was not found: no trial inside the bound")
    nowhere = dataclasses.replace(none, bound=dataclasses.replace(none.bound, c_max=None))
    assert answer(nowhere) == "C_V was not found: no number of clusters passes the bound."


def test_settings_that_are_searched_besides_c_are_columns_and_in_the_answer(capsys):
    one = result()
    settings = {"training.learning_rate": 0.0005, "sampling.guidance": 1}
    trials = [
        trial if trial.num_clusters is None else dataclasses.replace(trial, settings=settings) for trial in one.trials
    ]
    one = dataclasses.replace(one, trials=tuple(trials))
    print_result(one)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    header = next(line for line in lines if line[:1] == ["C"])
    assert header[:4] == ["C", "learning_rate", "guidance", "C^u"]
    assert next(line for line in lines if line[:1] == ["4"])[:3] == ["4", "0.0005", "1"]
    assert next(line for line in lines if line[:1] == ["none"])[:3] == ["none", "–", "–"]
    assert answer(one).startswith("C_V = 4 with learning_rate 0.0005, guidance 1: ")


def test_a_proposal_is_told_by_its_number():
    assert trial_label("c00020-p3") == "20 p3"
    assert trial_label("c00020-p3-s1") == "20 p3 seed 1"
