"""The page and the table hold the study's numbers, and nothing that runs or loads."""

import base64
import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cedm_ray.clustering.bound import BoundPoint, BoundResult
from cedm_ray.report.page import ClusterRow, duration, write_report, write_table
from cedm_ray.search.results import FEATURES, StudyResult, TrialReport, TrialResult, trial_name

RUNGS = (2.5, 10.0)


def trial(num_clusters, distances, status="completed", reason="", num_used=None, collapsed=False):
    reports = tuple(
        TrialReport(
            trial=trial_name(num_clusters),
            rung=rung,
            images_seen=int(1000 * RUNGS[rung % 2]),
            distance=distance,
            num_samples=100,
            loss=None,
            train_s=1.0,
            evaluate_s=0.1,
            skipped_steps=0,
            collapsed=collapsed,
        )
        for rung, distance in enumerate(distances)
    )
    return TrialResult(
        trial=trial_name(num_clusters),
        num_clusters=num_clusters,
        num_used=num_used,
        status=status,
        reason=reason,
        reports=reports,
    )


POINT = BoundPoint(num_clusters=40, num_used=39, utilization=0.975, passed=True, spread=0.025, told=(39, 38, 39))
STUDY = StudyResult(
    name="digits",
    num_images=1797,
    image_size=8,
    extractor="pixels",
    metric="FD[pixels]",
    num_samples=1234,
    rungs_kimg=RUNGS,
    bound=BoundResult(c_max=40, alpha=0.96, censored=False, reason="C_max = 40: 39 of 40 used", points=(POINT,)),
    trials=(
        trial(40, [33.25], "stopped", "33.25 is above the cutoff", 39),
        trial(20, [30.125, 6.0], num_used=20),
        trial(None, [41.5, 8.0]),
        trial(3, [31.0, None], "diverged", "not finite", 3),
        trial(4, [], "failed", "out of memory"),
    ),
    best="c00020",
    gain=0.25,
    stage_s={"bound": 61.2, "trials": 200.0},
)


def page(tmp_path, result=STUDY, rows=()):
    write_report(result, rows, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def table(tmp_path, result=STUDY):
    write_table(result, tmp_path / "results.csv")
    return list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text(encoding="utf-8"))))


class Cells(HTMLParser):
    """The text of every table row, cell by cell."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag == "td":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def without_svg(text):
    return re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_the_page_begins_with_the_answer(tmp_path):
    text = page(tmp_path)
    assert "<h1>Condition on 20 clusters</h1>" in text
    assert "FD[pixels] 6.000 after 10k training images, 25.0 % below the 8.000" in text
    assert "1,234 generated images" in text


def test_the_table_of_trials_has_every_number_in_the_order_of_c(tmp_path):
    rows = [row for row in Cells(page(tmp_path)).rows if len(row) == 6]
    assert rows == [
        ["unconditional", "–", "–", "41.50", "8.000", "completed"],
        ["3", "3", "1.000", "31.00", "not finite", "diverged: not finite"],
        ["4", "–", "–", "–", "–", "failed: out of memory"],
        ["20", "20", "1.000", "30.12", "6.000", "completed, best"],
        ["40", "39", "0.975", "33.25", "–", "stopped early: 33.25 is above the cutoff"],
    ]


def test_a_trial_on_features_stands_last_and_is_no_answer(tmp_path):
    oracle = replace(trial(None, [5.0, 1.0]), trial=FEATURES)
    result = replace(STUDY, trials=(oracle, *STUDY.trials))
    text = page(tmp_path, result)
    assert "<h1>Condition on 20 clusters</h1>" in text
    rows = [row for row in Cells(text).rows if len(row) == 6]
    assert rows[0][0] == "unconditional"
    assert rows[-1] == ["features", "–", "–", "5.000", "1.000", "completed"]
    assert table(tmp_path, result)[-1]["trial"] == FEATURES


def test_bound_and_costs_are_told(tmp_path):
    rows = Cells(page(tmp_path)).rows
    assert ["40", "39", "0.975", "0.025", "yes, Cmax"] in rows
    assert ["trials", "3 min 20 s"] in rows
    assert ["together", "4 min 21 s"] in rows


def test_the_page_loads_and_runs_nothing(tmp_path):
    row = ClusterRow(
        cluster=7, share=0.1, training=np.zeros((2, 3, 8, 8), np.uint8), samples=np.zeros((2, 3, 8, 8), np.uint8)
    )
    text = page(tmp_path, rows=[row])
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe|javascript:", text)
    assert all(source.startswith("data:image/png") for source in re.findall(r'(?<!\w)src="([^"]*)"', text))
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', text))
    assert "default-src 'none'" in text


def test_names_and_reasons_are_escaped(tmp_path):
    attack = "<script>alert(1)</script>\x1b[31m"
    trials = (*STUDY.trials, trial(5, [9.0], "failed", attack))
    bound = replace(STUDY.bound, reason=attack)
    result = replace(
        STUDY, name=attack, metric=attack, extractor=attack, trials=trials, bound=bound, stage_s={attack: 1.0}
    )
    text = page(tmp_path, result)
    assert "<script" not in text
    assert "\x1b" not in text
    assert without_svg(text).count("&lt;script&gt;alert(1)&lt;/script&gt;\\u001b[31m") >= 6


def test_cluster_rows_show_their_images(tmp_path):
    random = np.random.default_rng(0)
    training, samples = (random.integers(0, 256, size=(k, 3, 32, 32), dtype=np.uint8) for k in (3, 2))
    text = page(tmp_path, rows=[ClusterRow(cluster=17, share=0.0312, training=training, samples=samples)])
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)" alt="([^"]*)"', text)
    assert [alt for _, alt in pictures] == ["Training images of cluster 17", "Generated images of cluster 17"]
    for (data, _), images in zip(pictures, (training, samples), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert (pixels[:, -32:, :3] == images[-1].transpose(1, 2, 0)).all()
    assert "3.1 % of images" in text


@pytest.mark.parametrize(
    ("changes", "answer", "because"),
    [
        ({"gain": -0.5}, "No number of clusters beat the unconditional model", "50.0 % above the 4.000"),
        ({"gain": 0.0}, "No number of clusters beat the unconditional model", "exactly the 6.000"),
        ({"gain": None}, "20 clusters are the best of those tried", "so no gain is stated"),
        (
            {"gain": None, "trials": (trial(20, [30.0, 6.0]),)},
            "20 clusters are the best of those tried",
            "The unconditional model was not trained",
        ),
        ({"gain": None, "best": None}, "No usable result", "(1 stopped early, 1 completed, 1 diverged, 1 failed)"),
        ({"gain": None, "best": None, "trials": ()}, "No usable result", "(none was started)"),
        (
            {
                "gain": None,
                "best": None,
                "trials": (),
                "bound": BoundResult(c_max=None, alpha=0.96, censored=False, reason="No C passed", points=()),
            },
            "No number of clusters passed the bound",
            "No C passed",
        ),
    ],
)
def test_the_headline_is_honest(tmp_path, changes, answer, because):
    text = page(tmp_path, replace(STUDY, **changes))
    assert f"<h1>{answer}</h1>" in text
    assert because in text


def test_a_censored_bound_is_a_lower_bound(tmp_path):
    text = page(tmp_path, replace(STUDY, bound=replace(STUDY.bound, censored=True)))
    assert "≥ 40" in text
    assert "at least this" in text


def test_a_collapsed_distance_is_named(tmp_path):
    result = replace(STUDY, trials=(trial(2, [0.5], "collapsed", "all alike", collapsed=True),), best=None, gain=None)
    assert "0.5000, collapsed" in page(tmp_path, result)


def test_the_table_has_a_column_for_each_rung_and_every_digit(tmp_path):
    result = replace(STUDY, trials=(trial(None, [41.5, 1 / 3]), trial(40, [2e-17], "stopped", "above", 39)))
    assert table(tmp_path, replace(result, best=None)) == [
        {
            "trial": "unconditional",
            "num_clusters": "",
            "num_used": "",
            "utilization": "",
            "status": "completed",
            "reason": "",
            "images_seen": "10000",
            "distance": repr(1 / 3),
            "distance_at_2.5_kimg": "41.5",
            "distance_at_10_kimg": repr(1 / 3),
        },
        {
            "trial": "c00040",
            "num_clusters": "40",
            "num_used": "39",
            "utilization": "0.975",
            "status": "stopped",
            "reason": "above",
            "images_seen": "2500",
            "distance": "2e-17",
            "distance_at_2.5_kimg": "2e-17",
            "distance_at_10_kimg": "",
        },
    ]


@pytest.mark.parametrize(
    ("reason", "cell"),
    [
        ("=cmd()", "'=cmd()"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'=1"),
        ('say "a, b"\nand more', 'say "a, b" and more'),
        ("red \x1b[31m", "red \\u001b[31m"),
        ("\u202e=1", "\\u202e=1"),
        ("Fréchet", "Fréchet"),
    ],
)
def test_text_cells_run_nowhere(tmp_path, reason, cell):
    result = replace(STUDY, trials=(trial(2, [], "failed", reason),), best=None)
    assert table(tmp_path, result)[0]["reason"] == cell


def test_a_report_at_a_rung_that_the_study_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="c00002 reports rung 2, the study has 2"):
        table(tmp_path, replace(STUDY, trials=(trial(2, [3.0, 2.0, 1.0]),)))


def test_a_share_outside_its_range_is_refused():
    images = np.zeros((1, 3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"\(0, 1\], got 3.1"):
        ClusterRow(cluster=0, share=3.1, training=images, samples=images)


def test_durations_for_the_eye():
    seconds = (0.42, 12.2, 59.7, 200, 18420, 183600)
    assert [duration(s) for s in seconds] == ["0.4 s", "12 s", "1 min 0 s", "3 min 20 s", "5 h 7 min", "2 d 3 h"]


def with_settings():
    """The study with a search of the rate and a list, one trial of C = 20 beside another."""
    settings = {"training.learning_rate": 0.0005, "network.channel_mult": (1, 2)}
    trials = [one if one.num_clusters is None else replace(one, settings=settings) for one in STUDY.trials]
    other = trial(20, [35.0], "stopped", "35 is above the cutoff", 20)
    other = replace(other, trial="c00020-p7", settings={**settings, "network.channel_mult": "=1+1"})
    return replace(STUDY, trials=(*trials, other))


def test_settings_are_columns_of_the_page_and_said_of_the_best(tmp_path):
    text = page(tmp_path, with_settings())
    assert '<th class="n">learning_rate</th>' in text
    assert '<td class="n">20, p7</td>' in text
    assert '<td class="n">[1, 2]</td>' in text
    assert "It has learning_rate 0.0005, channel_mult [1, 2]." in text
    assert '<th class="n">learning_rate</th>' not in page(tmp_path, STUDY)


def test_settings_are_columns_of_the_table_by_their_paths(tmp_path):
    write_table(with_settings(), tmp_path / "results.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert list(rows[0])[-2:] == ["training.learning_rate", "network.channel_mult"]
    found = {row["trial"]: (row["training.learning_rate"], row["network.channel_mult"]) for row in rows}
    assert found["unconditional"] == ("", "")
    assert found["c00020"] == ("0.0005", "[1, 2]")
    assert found["c00020-p7"] == ("0.0005", "'=1+1")


def test_a_setting_without_a_number_is_written_as_in_a_space_and_no_empty_cell(tmp_path):
    unset = {"training.lr_rampup_kimg": None}
    trials = [one if one.num_clusters is None else replace(one, settings=unset) for one in STUDY.trials]
    study = replace(STUDY, trials=tuple(trials))
    write_table(study, tmp_path / "results.csv")
    rows = csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))
    found = {row["trial"]: row["training.lr_rampup_kimg"] for row in rows}
    assert (found["unconditional"], found["c00020"]) == ("", "null")
    assert '<td class="n">null</td>' in page(tmp_path, study)
