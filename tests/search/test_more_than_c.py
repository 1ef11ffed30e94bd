"""A search for more than C: played to its end whatever it dies of, and trained for real."""

import shutil

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.search import driver
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.model import EMA_FILE
from cedm_ray.search.outcome import study_result
from cedm_ray.search.results import UNCONDITIONAL, TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study
from cedm_ray.search.trial import load_assignment, run_trial

ALSO = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "clustering.gamma": [0.6, 0.8],
    "sampling.guidance": [0, 1],
}


def space_of_proposals(played, proposals, rule="asha", **more):
    also = dict(ALSO)
    if proposals == "grid":
        also["training.learning_rate"] = [1e-3, 2e-3]
    return played.space_of(
        bound={"alpha": 0.9, "c_start": 4, "c_limit": 4},
        candidates={"explicit": [2, 3, 4], "also": also, "proposals": proposals, "num_trials": 9, "ahead": 3},
        rungs={"rungs_kimg": [1, 2], "reduction_factor": 2, "rule": rule},
        network={"label_dropout": 0.1},
        finals={"finalists": 2, "seeds": 2, "budget_kimg": 4},
        **more,
    )


class PowerCut(Exception):
    """After a record was written."""


def work_off(played, path, space, monkeypatch=None, slots=1):
    """Drive to the end, one task after another; with a monkeypatch every driver dies with its next new record. (The
    last driver's cluster, how many drivers there were)."""
    drivers, write = 0, durable.write_record

    def write_and_die(place, record):
        new = not place.exists()
        write(place, record)
        if new:
            raise PowerCut

    if monkeypatch is not None:
        monkeypatch.setattr(durable, "write_record", write_and_die)
    while True:
        drivers += 1
        try:
            cluster = played.Cluster(path, space, total=(slots, 0))
            while not cluster.driver.finished:
                cluster.start_all()
                run_first(cluster)
            return cluster, drivers
        except PowerCut:
            continue


def run_first(cluster):
    """Do the task that was started first, up to what stops it."""
    name, (task, _) = next(iter(cluster.driver.live.items()))
    if isinstance(task, FitTask):
        changes = dict(task.changes)
        record = FitRecord(
            num_clusters=task.num_clusters,
            repeat=task.repeat,
            num_used=task.num_clusters,
            loss=0.0,
            seconds=1.0,
            changes=changes,
        )
        if name not in cluster.study.fits():
            labels = np.resize(np.arange(task.num_clusters, dtype=np.int32), 1000)
            cluster.study.write_fit(record, name, {"labels": labels}, {"method": "temi"})
        cluster.driver.end(name)
        return
    if task.num_clusters is not None:
        # What it is conditioned on is there before it starts.
        assert task.fit.name in cluster.study.fits()
    own = cluster.driver.space_for(task)
    for rung in range(2, 3) if task.final else range(2):
        # A function of what is trained: the rate, the guidance, the clusters, and the seed a little.
        distance = abs(np.log10(own.training.learning_rate) + 3.2) + own.sampling.guidance + own.clustering.gamma
        distance += 0.1 * (task.num_clusters or 40) + 0.01 * task.seed + 2 - rung / 2
        recorded = {report.rung: report for report in cluster.study.reports(task.trial)}
        if rung not in recorded:
            report = TrialReport.played(task.trial, rung, float(distance), images_seen=1000 * 2**rung)
            cluster.study.write_report(report)
        if cluster.driver.judge(cluster.study.reports(task.trial)[rung]).status != "running":
            break
    cluster.driver.end(name)


def records(study):
    """Every record of a study by its path, what it took excepted."""
    return {
        str(path.relative_to(study.path)): durable.read_record(path)
        for path in study.path.rglob("*.json")
        if path.parent.name != "timings"
    }


@pytest.mark.parametrize("rule", ["asha", "halving"])
@pytest.mark.parametrize("proposals", ["grid", "random", "tpe"])
def test_a_search_for_more_than_c_that_dies_after_every_record_comes_to_the_same(
    played, tmp_path, monkeypatch, proposals, rule
):
    space = space_of_proposals(played, proposals, rule)
    whole, _ = work_off(played, tmp_path / "whole", space)
    with monkeypatch.context() as patch:
        parts, drivers = work_off(played, tmp_path / "parts", space, patch)
    found = records(whole.study)
    assert records(parts.study) == found
    assert drivers > len(found) // 2
    tried = whole.study.proposals()
    assert len({(one.num_clusters, one.settings) for one in tried}) == 9
    # Every trial was trained as its record says, and every fit was made with its own gamma.
    for one in tried:
        values, own = dict(one.settings), whole.driver.space_for(one.task)
        assert own.training.learning_rate == values["training.learning_rate"]
        assert own.sampling.guidance == values["sampling.guidance"]
        assert own.clustering.gamma == values["clustering.gamma"]
        assert (one.task.fit.name == f"c{one.num_clusters:05d}-r0") == (values["clustering.gamma"] == 0.6)
        assert whole.driver.space_for(one.task.fit).clustering.gamma == values["clustering.gamma"]
    # The winner is the best of those that came to the last rung, by the function above, and was trained on.
    winner = whole.driver.agenda.winner
    assert whole.study.reports(winner.trial)[-1].rung == 2
    ended = {d.trial: d for d in whole.study.decisions() if d.rung == 1 and d.status == "completed"}
    best = min((whole.study.reports(name)[1].distance, name) for name in ended if name.startswith("c"))[1]
    assert winner.trial == best


def test_the_first_proposals_of_tpe_do_not_depend_on_the_cluster(played, tmp_path):
    """Those that follow from the field that is halved, whose outcome depends on no order."""
    space = space_of_proposals(played, "tpe", "halving", resources={"fit": {"at_once": 1}})
    found = [work_off(played, tmp_path / str(slots), space, slots=slots)[0].study.proposals() for slots in (1, 2, 8)]
    assert len(found[0]) == 9
    first = [[(one.num_clusters, one.settings) for one in of[:4]] for of in found]
    assert first[0] == first[1] == first[2]


def test_a_proposal_is_on_record_and_said_before_its_trial_starts(played, tmp_path):
    cluster = played.Cluster(tmp_path, space_of_proposals(played, "tpe"), total=(1, 0))
    while cluster.driver.agenda.bound is None:
        cluster.start_all()
        run_first(cluster)
    tried = cluster.study.proposals()
    assert [one.number for one in tried] == [1, 2, 3]
    assert sorted(durable.read_record(tmp_path / "candidates.json")["order"]) == [2, 3, 4]
    told = [text for text in cluster.notices if text.startswith(f"{tried[0].task.trial} has ")]
    assert len(told) == 1
    assert f"guidance {dict(tried[0].settings)['sampling.guidance']}" in told[0]
    while not cluster.driver.finished:
        cluster.start_all()
        known = {one.task.trial for one in cluster.study.proposals()}
        live = {task.trial for task, _ in cluster.driver.live.values() if isinstance(task, TrainTask)}
        assert {name.partition("-s")[0] for name in live} <= known | {UNCONDITIONAL}
        run_first(cluster)


def test_the_features_of_an_extractor_are_looked_at_once(played, tmp_path, monkeypatch):
    looked = []

    def shape(study, extractor=None):
        looked.append(extractor)
        return 1000, 8

    monkeypatch.setattr(driver, "features_shape", shape)
    space = played.space_of(
        bound={"alpha": 0.9, "c_start": 4, "c_limit": 4},
        candidates={"explicit": [2, 3, 4], "also": {"features.extractor": ["dinov2", "pixels"]}},
        features={"extractor": "pixels"},
    )
    cluster, _ = work_off(played, tmp_path, space)
    assert sum(fit.changes == {"features.extractor": "dinov2"} for fit in cluster.study.fits().values()) == 3
    assert looked == [None, "dinov2"]


def test_what_ran_out_of_memory_keeps_its_own_settings(played, tmp_path):
    cluster = played.Cluster(tmp_path, space_of_proposals(played, "grid"), total=(1, 0))
    while not cluster.study.proposals():
        cluster.start_all()
        run_first(cluster)
    task = next(one.task for one in cluster.study.proposals() if len(one.changes) == 3)
    cluster.driver.live[task.name] = (task, None)
    cluster.driver.die(task.name, "CUDA out of memory", out_of_memory=True)
    halved, own = cluster.driver.space_for(task), cluster.driver.space.changed(task.changes)
    assert halved.training.microbatch == 256
    assert halved.settled() == own.settled()


def test_a_search_of_c_alone_has_no_proposals(played, tmp_path):
    cluster, _ = work_off(played, tmp_path, played.space_of(bound={"alpha": 0.9, "c_start": 4, "c_limit": 4}))
    assert cluster.study.proposals() == []
    assert cluster.driver.agenda.proposals == ()
    assert cluster.driver.agenda.winner.proposal == 0


def test_tpe_trains_the_c_alone_where_nothing_else_is_searched(played, tmp_path):
    space = played.space_of(
        bound={"alpha": 0.9, "c_start": 64, "c_limit": 64},
        candidates={"low": 2, "count": 12, "proposals": "tpe", "num_trials": 5, "ahead": 2},
    )
    cluster, _ = work_off(played, tmp_path, space)
    tried = cluster.study.proposals()
    assert len({one.num_clusters for one in tried}) == len(tried) == 5
    assert all(one.settings == one.changes == () for one in tried)


def by_settings(study):
    """The proposals of the study by (guidance, gamma)."""
    found = {}
    for one in study.proposals():
        values = dict(one.settings)
        found[values["sampling.guidance"], values["clustering.gamma"]] = one
    return found


def test_what_changes_sampling_alone_trains_the_same_weights_and_measures_others(proposed):
    tried = by_settings(proposed)
    assert set(tried) == {(0, 0.6), (0, 0.9), (1, 0.6), (1, 0.9)}
    plain, guided = (tried[w, 0.6].task.trial for w in (0, 1))
    weights, distances, manifests = [], [], []
    for name in (plain, guided):
        checkpoint = durable.newest_checkpoint(proposed.checkpoints(name))
        weights.append(checkpoint.files[EMA_FILE])
        manifests.append(checkpoint.manifest)
        distances.append([report.distance for report in proposed.reports(name)])
    assert weights[0] == weights[1]
    assert [manifest["sampling"]["guidance"] for manifest in manifests] == [0, 1]
    assert len(distances[0]) == len(distances[1]) == 2
    assert all(a != b for a, b in zip(*distances, strict=True))


def test_a_proposal_of_the_spaces_own_settings_is_the_trial_that_it_would_be_by_itself(
    proposed, proposing_space, tmp_path
):
    same = by_settings(proposed)[0, 0.6].task
    assert same.changes == ()
    alone = Study(tmp_path / "study")
    shutil.copytree(proposed.path, alone.path)
    reports = [e for e in run_trial(alone, proposing_space, 3, device="cpu") if isinstance(e, TrialReport)]
    assert [report.distance for report in reports] == [r.distance for r in proposed.reports(same.trial)]


def test_every_trial_is_conditioned_on_the_clusters_of_its_own_gamma(proposed):
    fits = proposed.fits()
    for (_, gamma), one in by_settings(proposed).items():
        fit = one.task.fit.name
        tensors, about = durable.read_tensors(proposed.fit(fit))
        assert about["config"]["gamma"] == gamma
        assert fits[fit].changes == ({} if gamma == 0.6 else {"clustering.gamma": 0.9})
        manifest = durable.newest_checkpoint(proposed.checkpoints(one.task.trial)).manifest
        counts = np.bincount(tensors["labels"], minlength=3)
        assert manifest["counts"] == counts[counts > 0].tolist()
        assert manifest.get("fit") == (None if gamma == 0.6 else fit)
        assert np.array_equal(load_assignment(proposed, 3, manifest.get("fit")).labels, tensors["labels"])
    # Two of each gamma share one fit, and the two are not the same clusters.
    assert sorted(name for name in fits if name.startswith("c00003")) == ["c00003-5f7a6adf-r0", "c00003-r0"]
    assert len({tuple(load_assignment(proposed, 3, name).labels.tolist()) for name in fits if "c00003" in name}) == 2


def test_clusters_may_be_those_of_k_means_and_of_other_features(tiny_space, tmp_path, color_network, study_tools):
    plain = tiny_space.model_dump(mode="json")
    also = {"clustering.method": ["temi", "kmeans"], "features.extractor": ["pixels", str(color_network)]}
    # The gamma of what k-means groups is nothing to it, so that it is tried once with each extractor.
    also["clustering.gamma"] = [0.6, 0.9]
    space = SearchSpace.model_validate(
        {
            **plain,
            "bound": {**plain["bound"], "c_limit": 4},
            "candidates": {"explicit": [3], "also": also},
            "rungs": {"rungs_kimg": [0.064]},
        }
    )
    study = Study(tmp_path / "study")
    study_tools.prepare(study, space)
    study_tools.drive(study, space)
    tried = study.proposals()
    fits = {one.task.fit.name for one in tried}
    assert (len(tried), len(fits)) == (6, 6)
    assert {name for name in study.fits() if name.startswith("c00003")} == fits
    for one in tried:
        values = dict(one.settings)
        tensors, about = durable.read_tensors(study.fit(one.task.fit.name))
        assert about["method"] == values["clustering.method"]
        assert about["extractor"] == values["features.extractor"]
        counts = np.bincount(tensors["labels"], minlength=3)
        manifest = durable.newest_checkpoint(study.checkpoints(one.task.trial)).manifest
        assert manifest["counts"] == counts[counts > 0].tolist()
    images = open_image_set(study.images)
    result = study_result(study, space, images)
    assert {trial.status for trial in result.trials} == {"completed"}
