"""Names say the network; a contradiction and an unknown word say what was meant."""

import pytest

from cedm_ray.errors import ConfigurationError
from cedm_ray.evaluation.gathering import PROBABILITIES, Network
from cedm_ray.evaluation.scores import MEASURES, Score, choose, free_of_count, names, network_of, read_measurement
from cedm_ray.metrics.measurement import Measurement


def named(word, detector="inception", extractor="pixels"):
    measure = MEASURES[word]
    return names(measure, network_of(measure, detector=detector, extractor=extractor, weights={}))


@pytest.mark.parametrize(
    ("word", "detector", "name"),
    [
        ("fd", "inception", "FID"),
        ("fd", "dinov2", "FDD"),
        ("fd", "pixels", "FD[pixels]"),
        ("fd", "inception_clean", "FID[clean]"),
        ("fd", "/a/b/net.pt", "FD[net]"),
        ("fid", "pixels", "FID"),
        ("fdd", "pixels", "FDD"),
        ("kid", "pixels", "KID"),
        ("kd", "pixels", "KD[pixels]"),
        ("kd", "inception", "KID"),
        ("is", "pixels", "IS"),
        ("ufd", "pixels", "uFD[pixels]"),
        ("ufid", "pixels", "uFID"),
        ("fid_inf", "pixels", "FID_inf"),
        ("auroc", "inception", "AUROC[pixels]"),
        ("msp", "inception", "MSP[pixels]"),
    ],
)
def test_only_inception_is_fid_and_only_dinov2_is_fdd(word, detector, name):
    found = named(word, detector)
    assert found == ((name, "IS std over splits") if word == "is" else (name,))


def test_an_inception_score_with_other_weights_says_so():
    network = Network(spec=PROBABILITIES, weights="/mine.pt")
    assert names(MEASURES["is"], network) == ("IS[inception+mine]", "IS[inception+mine] std over splits")
    copy = Network(spec=PROBABILITIES, weights="/inception-2015-12-05.pt")
    assert names(MEASURES["is"], copy)[0] == "IS"


@pytest.mark.parametrize("detector", ["inception", "pixels", "x_inf.pt"])
def test_only_what_has_no_bias_of_its_number_of_images_may_differ_in_it(detector):
    free = {word for word in MEASURES if all(free_of_count(name) for name in named(word, detector))}
    assert free == {"kd", "kid", "fd_inf", "fid_inf"}


def test_measures_of_several_numbers_have_several_names():
    assert named("prdc", "pixels") == ("precision[pixels]", "recall[pixels]", "density[pixels]", "coverage[pixels]")
    network = Network(spec="pixels")
    assert names(MEASURES["memorization"], network) == ("memorized[pixels]", "similarity[pixels]")
    assert names(MEASURES["memorization"], network, with_test=True)[2] == "memorized test[pixels]"


def test_every_measure_has_names_and_a_text():
    for word, measure in MEASURES.items():
        assert word == measure.word
        assert measure.text
        assert all(named(word))


def test_weights_go_to_the_network_that_they_are_for():
    weights = {"inception": "/w.pt"}
    settings = {"detector": "pixels", "extractor": "pixels", "weights": weights}
    assert network_of(MEASURES["fid"], **settings) == Network(spec="inception", weights="/w.pt")
    assert network_of(MEASURES["is"], **settings) == Network(spec=PROBABILITIES, weights="/w.pt")
    assert network_of(MEASURES["fd"], **settings) == Network(spec="pixels")


def test_measures_are_chosen_in_order_and_once():
    chosen = choose(["prdc", "fd", "prdc"], detector="pixels", is_given=True)
    assert [measure.word for measure in chosen] == ["prdc", "fd"]


def test_an_unknown_word_gets_the_nearest_one():
    with pytest.raises(ConfigurationError, match="unknown metric 'fidd'; did you mean fid") as error:
        choose(["fidd"], detector="pixels", is_given=False)
    assert "prdc" in error.value.mend
    with pytest.raises(ConfigurationError, match="no metric"):
        choose([], detector="pixels", is_given=False)


def test_a_detector_that_contradicts_a_measure_is_refused_only_where_it_was_named():
    with pytest.raises(ConfigurationError, match="fid is a measure of inception's features") as error:
        choose(["fid"], detector="pixels", is_given=True)
    assert "ask for fd" in error.value.mend
    with pytest.raises(ConfigurationError, match="is is a measure of inception's"):
        choose(["is"], detector="dinov2", is_given=True)
    assert choose(["fid", "fdd"], detector="pixels", is_given=False)
    assert choose(["fid", "fd"], detector="inception", is_given=True)


def test_a_score_travels_as_plain_values():
    measurement = Measurement(
        metric="FID",
        detector="key",
        num_samples=10,
        reference="digest",
        values=(1.0, 2.0, 4.5),
        seeds=(range(10), range(10, 20), range(20, 30)),
    )
    told = Score(measurement=measurement, network="inception", errors=None, images=10).to_json()
    assert told["mean"] == 2.5
    assert told["std"] == pytest.approx(((1.5**2 + 0.5**2 + 2**2) / 2) ** 0.5)
    assert read_measurement(told) == measurement
