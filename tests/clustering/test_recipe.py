"""Settings, presets and the learning rate of each step."""

import numpy as np
import pydantic
import pytest

from cedm_ray.clustering.recipe import TemiConfig, learning_rate


def test_the_defaults_are_table_8_and_the_preset_of_the_paper():
    config = TemiConfig()
    assert TemiConfig(preset="paper") == config
    assert (config.num_heads, config.batch_size, config.epochs, config.num_neighbors) == (50, 512, 200, 50)
    assert (config.hidden, config.bottleneck, config.gamma, config.feature_norm) == (512, 256, 0.6, "none")
    assert (config.student_temperature, config.teacher_temperature) == (0.1, 0.1)
    assert (config.teacher_momentum, config.marginal_momentum) == (0.996, 0.9)
    assert (config.learning_rate, config.min_learning_rate, config.weight_decay) == (1e-4, 1e-4, 1e-4)


def test_the_literal_preset_takes_table_8_at_its_word_and_written_keys_win():
    literal = TemiConfig.model_validate({"preset": "paper_literal"})
    assert literal.marginal_momentum == 0.996
    assert literal.model_dump(exclude={"preset", "marginal_momentum"}) == TemiConfig().model_dump(
        exclude={"preset", "marginal_momentum"}
    )
    written = TemiConfig.model_validate({"preset": "paper_literal", "marginal_momentum": 0.5, "epochs": 3})
    assert (written.marginal_momentum, written.epochs) == (0.5, 3)
    # What a study keeps are the effective values, which read as themselves again.
    assert TemiConfig.model_validate(literal.model_dump(mode="json")) == literal


def test_golden_learning_rates_of_the_recipe():
    config = TemiConfig()
    rates = [learning_rate(t, steps_per_epoch=97, batch=512, config=config) for t in range(19_400)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(1.0314595e-7, rel=1e-7)
    assert rates[1939] == pytest.approx(2e-4, rel=1e-12)
    assert rates[1940] == pytest.approx(2e-4, rel=1e-12)
    assert rates[-1] == pytest.approx(2e-4, rel=1e-12)


def test_golden_learning_rates_with_a_cosine():
    config = TemiConfig(learning_rate=5e-4, min_learning_rate=1e-6, warmup_epochs=10)
    rates = [learning_rate(t, steps_per_epoch=97, batch=512, config=config) for t in (969, 970, 9700, 19_399)]
    assert rates == pytest.approx([1e-3, 1e-3, 5.4220708e-4, 2.0000072e-6], rel=1e-7)


def test_a_warm_up_longer_than_the_training_is_clipped():
    config = TemiConfig(epochs=2, warmup_epochs=20)
    rates = [learning_rate(t, steps_per_epoch=3, batch=256, config=config) for t in range(6)]
    np.testing.assert_allclose(rates, np.linspace(0, 1e-4, 6), rtol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "published"},
        {"preset": None},
        {"gamma": 0.5},
        {"gamma": 1.1},
        {"teacher_momentum": 1.0},
        {"marginal_momentum": -0.1},
        {"num_heads": 0},
        {"head_group": 0},
        {"memory_budget_gib": 0},
        {"precision": "float16"},
        {"feature_norm": "whiten"},
        {"learning_rate": 1e-5},
        {"beta": 0.6},
    ],
)
def test_a_configuration_that_breaks_a_rule_is_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        TemiConfig(**wrong)
