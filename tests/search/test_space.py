"""Search spaces as files: those of the repository load, and what may change on resume is exactly the resources."""

from pathlib import Path

import pydantic
import pytest

from cedm_ray.config import parse_config
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.space import FitResources, SearchSpace, TrialResources, read_space
from cedm_ray.search.study import Study

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_search_space_of_the_repository_loads(path):
    space = read_space(path, images="somewhere")
    assert space.images.source == "somewhere"
    # What a study keeps of it must survive JSON and give the same space again.
    again = SearchSpace.from_settled(space.settled())
    assert again.settled() == space.settled()


def test_there_is_a_search_space_for_the_quickstart():
    assert "digits" in [path.stem for path in SPACES]


def write(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return path


def test_a_space_without_images_says_how_to_name_them(tmp_path):
    path = write(tmp_path, "name: mine\nimages: {size: 32}\n")
    with pytest.raises(ConfigurationError, match=r"images\.source is empty") as caught:
        read_space(path)
    assert "--images" in caught.value.mend
    assert read_space(path, images="folder").images == read_space(path, images="folder").images
    assert read_space(path, images="folder").images.size == 32


def test_images_of_the_command_line_replace_those_of_the_file_also_where_the_section_is_empty(tmp_path):
    assert read_space(write(tmp_path, "name: a\nimages: {source: old}\n"), images="new").images.source == "new"
    assert read_space(write(tmp_path, "name: a\nimages:\n"), images="new").images.source == "new"
    assert read_space(write(tmp_path, "name: a\n"), images="new").images.source == "new"
    with pytest.raises(ConfigurationError, match=r"images must be a mapping, got 'folder'"):
        read_space(write(tmp_path, "name: a\nimages: folder\n"), images="new")


def test_what_changes_no_result_may_change_on_resume_and_nothing_else(tiny_space):
    def changed(**sections):
        plain = tiny_space.model_dump(mode="json")
        for section, values in sections.items():
            plain[section] = {**plain[section], **values} if isinstance(values, dict) else values
        return SearchSpace.model_validate(plain).settled()

    same = tiny_space.settled()
    assert changed(resources={"trial": {"workers": 4, "cpus": 2}, "fit": {"gpus": 0.5}}) == same
    assert changed(images={"source": "moved"}) == same
    assert changed(checkpoints={"every_kimg": 1, "keep": 3}) == same
    assert changed(clustering={"memory_budget_gib": 2, "compile": True}) == same
    assert changed(clustering={"preset": "paper_literal"}) == same  # Every value is written, so none comes from it.
    assert changed(clustering={"head_group": 1}, training={"microbatch": 8}, sampling={"batch_size": 7}) == same
    assert changed(finals={"evaluate": True}) == same
    for other in (
        {"seed": 4},
        {"finals": {"seeds": 2}},
        {"finals": {"finalists": 2}},
        {"finals": {"budget_kimg": 1}},
        {"rungs": {"rule": "halving"}},
        {"rungs": {"grace_kimg": 0.3}},
        {"candidates": {"refine": 1}},
        {"name": "other"},
        {"images": {"size": 16}},
        {"clustering": {"gamma": 0.7}},
        {"clustering": {"precision": "bfloat16"}},
        {"rungs": {"reduction_factor": 3}},
        {"evaluation": {"num_samples": 33}},
        {"sampling": {"num_steps": 5}},
        {"training": {"batch_size": 7}},
    ):
        assert changed(**other) != same


def test_a_study_keeps_the_values_of_a_preset_and_not_its_name(tmp_path):
    literal = read_space(write(tmp_path, "name: a\nclustering: {preset: paper_literal}\n"), images="x")
    assert literal.settled()["clustering"]["marginal_momentum"] == 0.996
    spelled = read_space(write(tmp_path, "name: a\nclustering: {marginal_momentum: 0.996}\n"), images="x")
    assert spelled.settled() == literal.settled()


@pytest.mark.parametrize(
    ("workers", "gpus", "possible"),
    [
        (1, None, True),
        (4, None, True),
        (1, 0, True),
        (1, 0.25, True),
        (1, 2, True),
        (4, 2, True),
        (1, 1.5, False),
        (2, 0.5, False),
        (4, 1.5, False),
        (1, -1, False),
    ],
)
def test_a_share_of_a_gpu_is_for_one_worker_alone(workers, gpus, possible):
    if possible:
        assert TrialResources(workers=workers, gpus=gpus).gpus == gpus
    else:
        with pytest.raises(pydantic.ValidationError):
            TrialResources(workers=workers, gpus=gpus)


@pytest.mark.parametrize("values", [{"gpus": 1.5}, {"gpus": -0.1}, {"cpus": 0}, {"at_once": 0}])
def test_impossible_fit_resources_are_refused(values):
    with pytest.raises(pydantic.ValidationError):
        FitResources(**values)


@pytest.mark.parametrize("name", ["", "a b", "../up", "x" * 65, "<script>", "é"])
def test_names_that_could_be_more_than_a_name_are_refused(name):
    with pytest.raises(ConfigurationError, match="name"):
        parse_config(SearchSpace, {"name": name, "images": {"source": "x"}}, "space.yaml")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"seed": -1}, "seed"),
        ({"bound": {"alpha": 1.2}}, "bound.alpha"),
        ({"bound": {"c_start": 1}}, "bound.c_start"),
        ({"bound": {"c_start": 2.5}}, "bound.c_start"),
        ({"clustering": {"gamma": 0.5}}, "clustering.gamma"),
        ({"rungs": {"rungs_kimg": [2, 1]}}, "rungs.rungs_kimg"),
        ({"candidates": {"low": 1}}, "candidates.low"),
        ({"evaluation": {"num_samples": 1}}, "evaluation.num_samples"),
        ({"checkpoints": {"keep": 1}}, "checkpoints.keep"),
    ],
)
def test_values_out_of_range_are_named_with_their_key(values, key):
    with pytest.raises(ConfigurationError, match=key.replace(".", r"\.")):
        parse_config(SearchSpace, {"name": "a", "images": {"source": "x"}, **values}, "space.yaml")


def test_guidance_without_a_null_label_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match=r"sampling\.guidance needs network\.label_dropout above 0.*got guidance 1\.5"):
        SearchSpace.model_validate({"name": "x", "images": {}, "sampling": {"guidance": 1.5}})
    SearchSpace.model_validate(
        {"name": "x", "images": {}, "sampling": {"guidance": 1.5}, "network": {"label_dropout": 0.1}}
    )


def test_a_study_begun_before_there_was_a_key_goes_on_with_its_default(tmp_path, tiny_space):
    study = Study(tmp_path / "study")
    old = tiny_space.settled()
    del old["candidates"]["refine"], old["finals"], old["rungs"]["rule"]
    study.settle(old)
    study.ray.mkdir()
    study.settle(tiny_space.settled(), SearchSpace.completed)
    assert study.settled() == old
    rungs = tiny_space.rungs.model_copy(update={"rule": "halving"})
    changed = tiny_space.model_copy(update={"rungs": rungs})
    with pytest.raises(ConfigurationError, match=r"rungs\.rule"):
        study.settle(changed.settled(), SearchSpace.completed)


ALSO = """
name: a
network: {label_dropout: 0.1}
candidates:
  also:
    training.learning_rate: {low: 1e-4, high: 1e-2, log: true}
    sampling.guidance: [0, 0.5, 1]
    network.channel_mult: [[1, 2], [2, 2]]
  proposals: tpe
  num_trials: 20
"""


def test_a_search_for_more_than_c_is_written_as_documented_and_kept_as_it_is(tmp_path):
    space = read_space(write(tmp_path, ALSO), images="x")
    assert space.candidates.proposes
    assert space.own == {
        "training.learning_rate": 1e-3,
        "sampling.guidance": 0,
        "network.channel_mult": (2, 2, 2),
    }
    study = Study(tmp_path / "study")
    study.settle(space.settled())
    again = SearchSpace.from_settled(study.settled())
    assert again.settled() == space.settled()
    assert again.candidates == space.candidates
    study.settle(again.settled(), SearchSpace.completed)
    assert not SearchSpace.model_validate({"name": "a", "images": {}}).candidates.proposes


def test_a_trials_space_has_its_own_values_and_searches_nothing_else(tmp_path):
    space = read_space(write(tmp_path, ALSO), images="x")
    changes = (("network.channel_mult", (1, 2)), ("sampling.guidance", 1), ("training.learning_rate", 2e-3))
    found = space.changed(changes)
    assert (found.network.channel_mult, found.sampling.guidance) == ((1, 2), 1)
    assert found.training.learning_rate == 2e-3
    assert not found.candidates.proposes
    rest = [space.model_dump(), found.model_dump()]
    for plain in rest:
        del plain["candidates"], plain["network"]["channel_mult"]
        del plain["sampling"]["guidance"], plain["training"]["learning_rate"]
    assert rest[0] == rest[1]
    with pytest.raises(pydantic.ValidationError, match="greater than 0"):
        space.changed((("training.learning_rate", -1.0),))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("training.learning_rate:", "images.size:", r"cannot have images\.size: settings of clustering, network"),
        (
            "training.learning_rate:",
            "training.rate:",
            r"no such setting; of its settings batch_size, learning_rate",
        ),
        ("low: 1e-4", "low: -1", r"range\.?.*low must be above 0 for a range in log, got -1"),
        ("low: 1e-4, ", "", r"candidates\.also\.training\.learning_rate\.range\.low is missing"),
        (
            "{low: 1e-4, high: 1e-2, log: true}",
            "[0, 1]",
            r"with .*: training\.learning_rate: input should be greater than 0",
        ),
        (
            "[0, 0.5, 1]",
            "0.5",
            r":7:5: candidates\.also\.sampling\.guidance: must be a list of values, or a range ",
        ),
        ("[0, 0.5, 1]", "[]", r"list at least one value of sampling\.guidance, each once"),
        ("[0, 0.5, 1]", "[0, 1, 0]", r"list at least one value of sampling\.guidance, each once"),
        ("label_dropout: 0.1", "label_dropout: 0", r"with .*guidance 0\.5.*: sampling\.guidance needs network\.label"),
        (
            "network.channel_mult: [[1, 2], [2, 2]]",
            "network.model_channels: {low: 8, high: 32}",
            r"network\.model_channels: input should be a multiple of 4; list the values",
        ),
        (
            "network.channel_mult: [[1, 2], [2, 2]]",
            "clustering.method: [temi, {a: 1}]",
            r"must list some of temi, kmeans",
        ),
        (
            "network.channel_mult: [[1, 2], [2, 2]]",
            "clustering.method: [temi, labels]",
            r"clustering\.method cannot be labels: its groups are the labels, so there is no C to search",
        ),
        (
            "network.channel_mult: [[1, 2], [2, 2]]",
            "clustering.method: [clip]",
            r"clustering\.method cannot be clip: its groups are the classes that somebody names, so there is no C",
        ),
        (
            "network.channel_mult: [[1, 2], [2, 2]]",
            "clustering.method: [kmeans]\n    clustering.gamma: [0.6, 0.7]",
            r"cannot have clustering\.gamma: k-means, the only clustering\.method, has no such setting",
        ),
        ("tpe", "grid", r"a grid has no ranges: list values of training\.learning_rate"),
        ("  num_trials: 20\n", "", r"num_trials must say how many trials are proposed by tpe"),
        ("num_trials: 20", "num_trials: 20\n  refine: 1", r"refine is for a search of C alone"),
        ("num_trials: 20", "num_trials: 20\n  early: true", r"early is for a search of C alone"),
    ],
)
def test_what_may_not_be_searched_is_refused_with_its_path(tmp_path, old, new, message):
    assert old in ALSO
    with pytest.raises(ConfigurationError, match=message):
        read_space(write(tmp_path, ALSO.replace(old, new)), images="x")


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ({"network.channel_mult": [[1, 2], [1, 1, 1, 2]]}, r"network\.channel_mult \[1, 1, 1, 2\] .* multiple of 8"),
        ({"training.batch_size": [16, 18]}, r"training\.batch_size 18 is not divisible by resources\.trial\.workers 4"),
        ({"training.batch_size": {"low": 16, "high": 32}}, r"training\.batch_size 17 is not divisible"),
    ],
)
def test_what_no_trial_could_train_with_is_refused_once_the_images_are_known(also, message):
    proposals = {"proposals": "random", "num_trials": 3}
    plain = {"name": "a", "images": {"source": "x"}, "resources": {"trial": {"workers": 4}}}
    space = SearchSpace.model_validate({**plain, "candidates": {"also": also, **proposals}})
    with pytest.raises(ConfigurationError, match=message) as caught:
        space.check_searched(12)
    assert caught.value.mend
    fine = {"network.channel_mult": [[1, 2], [1, 1, 2]], "training.batch_size": [16, 20]}
    SearchSpace.model_validate({**plain, "candidates": {"also": fine, **proposals}}).check_searched(12)


def test_other_ways_to_find_the_clusters_may_be_searched():
    plain = {"name": "a", "images": {"source": "x"}, "features": {"extractor": "pixels", "weights": "own.pth"}}
    also = {"clustering.method": ["temi", "kmeans"], "features.extractor": ["pixels", "./net.pt"]}
    space = SearchSpace.model_validate({**plain, "candidates": {"also": also}, "kmeans": {"n_init": 3}})
    assert space.own == {"clustering.method": "temi", "features.extractor": "pixels"}
    assert space.other_extractors == ("./net.pt",)
    kept = [("clustering.method", "kmeans"), ("features.extractor", "./net.pt")]
    found = space.changed(tuple(kept))
    # Weights are of the extractor that they were named for.
    assert (found.features.extractor, found.features.weights) == ("./net.pt", None)
    assert space.changed(tuple(kept[:1])).features == space.features
    assert found.clustering == space.clustering
    # How k-means is run is then a part of what a search does.
    assert space.settled()["kmeans"]["n_init"] == 3
    assert "kmeans" not in SearchSpace.model_validate(plain).settled()
    for path, values in (
        ("clustering.method", ["temi", "dbscan"]),
        ("clustering.method", {"low": 0, "high": 1}),
        ("features.extractor", [1, 2]),
        ("features.extractor", {"low": 0, "high": 1}),
    ):
        with pytest.raises(pydantic.ValidationError, match=f"{path} must list"):
            SearchSpace.model_validate(
                {**plain, "candidates": {"also": {path: values}, "proposals": "random", "num_trials": 3}}
            )
