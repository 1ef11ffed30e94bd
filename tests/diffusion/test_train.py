"""Training against its promises: every split is the same optimization, a resumed run is the run, a bad step leaves
no trace."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from cedm_ray.data.order import TrainingOrder
from cedm_ray.diffusion import compilation
from cedm_ray.diffusion import train as training
from cedm_ray.diffusion.augment import AugmentConfig
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.train import DivergedError, TrainConfig, TrainState, train
from cedm_ray.diffusion.unet import UNetConfig

NET = UNetConfig(model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), dropout=0.0)
CONFIG = TrainConfig(batch_size=16, lr_rampup_kimg=0.1, ema_halflife_kimg=0.2)
NO_AUGMENT = AugmentConfig(probability=0)
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
CLASSES = np.random.default_rng(1).integers(-1, 4, 64)


def _state(config=CONFIG, unet=NET, augment=NO_AUGMENT, num_classes=4, seed=0) -> TrainState:
    return TrainState.create(unet, EDMConfig(), config, augment, 8, num_classes, seed, "cpu")


def _run(*arguments, **settings):
    return list(_start(*arguments, **settings))


def _start(
    state, until_images, config=CONFIG, augment=NO_AUGMENT, progress_every=10**9, pixels=PIXELS, classes=CLASSES
):
    return train(
        state,
        pixels,
        classes,
        config=config,
        augment=augment,
        order=TrainingOrder(num_images=64, seed=3),
        seed=5,
        until_images=until_images,
        total_kimg=10,
        progress_every=progress_every,
    )


def _assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


WORKERS = (4, 2)


def _worker(rank: int, folder: str) -> None:
    """Trains with three others, and then, as one of the first two, with one other: to start a process takes longer."""
    torch.set_num_threads(1)
    for workers in WORKERS:
        if rank < workers:
            _train_together(rank, workers, f"{folder}/{workers}")


def _train_together(rank: int, workers: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    try:
        config = CONFIG.model_copy(update={"microbatch": 3})
        state = _state()
        # Two calls, because a rung ends one and the next one reuses the wrapper.
        _run(state, 10 * 16, config)
        torch.save(state.tensors(), f"{folder}/half-{rank}.pt")
        progress = _run(state, 20 * 16, config)
        torch.save(state.tensors(), f"{folder}/weights-{rank}.pt")
        torch.save(torch.tensor([progress[-1].loss]), f"{folder}/loss-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone():
    """A state that one process trained for 20 steps, with the loss of its second half."""
    state = _state()
    _run(state, 10 * 16)
    return state, _run(state, 20 * 16)[-1].loss


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What so many workers have saved, in a folder of each number."""
    folder = tmp_path_factory.mktemp("together")
    for workers in WORKERS:
        (folder / f"{workers}").mkdir()
    torch.multiprocessing.spawn(_worker, (str(folder),), nprocs=max(WORKERS))
    return folder


@pytest.mark.parametrize("workers", WORKERS)
def test_workers_train_the_same_network_as_one_process(alone, together, workers):
    state, loss = alone
    folder = together / f"{workers}"
    for rank in range(workers):
        shared = torch.load(folder / f"weights-{rank}.pt", weights_only=True)
        _assert_close(shared, state.tensors(), 2e-5)
        assert torch.load(folder / f"loss-{rank}.pt", weights_only=True).item() == pytest.approx(loss, rel=1e-5)
    # What several saved halfway, one goes on with.
    state = _state(seed=99)
    state.load(torch.load(folder / f"half-{workers - 1}.pt", weights_only=True), 10 * 16, 0)
    _run(state, 20 * 16)
    _assert_close(state.tensors(), alone[0].tensors(), 2e-5)


@pytest.mark.parametrize("microbatch", [1, 5, 16, 100])
def test_microbatches_do_not_change_the_optimization(microbatch):
    whole, split = _state(augment=AugmentConfig()), _state(augment=AugmentConfig())
    _run(whole, 5 * 16, augment=AugmentConfig())
    _run(split, 5 * 16, CONFIG.model_copy(update={"microbatch": microbatch}), AugmentConfig())
    _assert_close(whole.tensors(), split.tensors(), 1e-5)


def test_saved_and_loaded_training_goes_on_bit_for_bit():
    unet, augment = NET.model_copy(update={"dropout": 0.2}), AugmentConfig(probability=0.5)
    through, first, second = (_state(unet=unet, augment=augment, seed=seed) for seed in (0, 0, 99))
    _run(through, 8 * 16, augment=augment)
    _run(first, 4 * 16, augment=augment)
    second.load(first.tensors(), first.images_seen, first.skipped_steps)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True))
    torch.rand(17)  # What others draw must not matter.
    _run(second, 8 * 16, augment=augment)
    expected, got = through.tensors(), second.tensors()
    assert second.images_seen == 8 * 16
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_training_leaves_the_global_generators_alone():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    _run(_state(unet=NET.model_copy(update={"dropout": 0.5})), 32)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_dropout_is_drawn_anew_in_every_step_and_by_every_seed():
    runs = []
    for rate in (0.0, 0.5):
        state = _state(unet=NET.model_copy(update={"dropout": rate}))
        _run(state, 3 * 16)
        runs.append(state.tensors()["net.conv_in.weight"])
    assert not torch.equal(*runs)


def test_one_step_is_adam_on_the_mean_loss_and_the_average_follows():
    # Adam's first step moves each weight by rate * gradient / (|gradient| + eps), up to the sign rate itself.
    config = CONFIG.model_copy(update={"lr_rampup_kimg": 0.0, "learning_rate": 0.01, "ema_rampup_ratio": None})
    state = _state(config)
    before = state.tensors()
    _run(state, 16, config)
    after = state.tensors()
    for name, weight in before.items():
        if name.startswith("net."):
            moved = after[name] - weight
            gradient = after[f"optimizer.{name[4:]}.exp_avg"] / 0.1
            torch.testing.assert_close(moved, -0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-3, atol=1e-6)
            decay = 0.5 ** (16 / 200)
            expected = decay * before[f"ema.{name[4:]}"] + (1 - decay) * after[name]
            torch.testing.assert_close(after[f"ema.{name[4:]}"], expected)


def test_loss_falls_on_images_that_can_be_learned():
    pixels = np.zeros((64, 3, 8, 8), dtype=np.uint8)
    pixels[:, :, :, 4:] = 255
    config = CONFIG.model_copy(update={"learning_rate": 5e-3})
    progress = _run(_state(config), 80 * 16, config, pixels=pixels, progress_every=20 * 16)
    assert progress[-1].loss < 0.6 * progress[0].loss


def test_progress_comes_at_its_intervals_and_at_the_end():
    progress = _run(_state(), 100, progress_every=40)
    assert [p.images_seen for p in progress] == [48, 80, 112]
    assert [p.learning_rate for p in progress] == pytest.approx([1e-3 * seen / 100 for seen in (32, 64, 96)])
    assert all(p.loss > 0 and p.skipped_steps == 0 for p in progress)


def test_progress_tells_the_norm_of_the_last_gradient():
    state = _state()
    progress = _run(state, 48)[-1]
    # The gradients of the last step are still there.
    squares = sum((weight.grad.double() ** 2).sum().item() for weight in state.net.parameters())
    assert progress.gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-5)


def test_images_per_second_leave_out_what_is_done_between_two_progress_values(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(training, "time", clock)
    update = training.update_ema

    def slow(*arguments):
        clock.now += 0.5
        update(*arguments)

    monkeypatch.setattr(training, "update_ema", slow)
    rates = []
    for progress in _start(_state(), 96, progress_every=32):
        rates.append(progress.images_per_s)
        clock.now += 100
    # Two steps of 16 images in a second.
    assert rates == [32.0] * 3
    assert _run(_state(), 0)[-1].images_per_s is None


def test_interrupting_between_yields_leaves_a_whole_state():
    state, whole = _state(), _state()
    progress = train(
        state,
        PIXELS,
        CLASSES,
        config=CONFIG,
        augment=NO_AUGMENT,
        order=TrainingOrder(num_images=64, seed=3),
        seed=5,
        until_images=1000,
        total_kimg=10,
        progress_every=32,
    )
    assert next(progress).images_seen == 32
    progress.close()
    _run(whole, 32)
    assert all(torch.equal(a, b) for a, b in zip(state.tensors().values(), whole.tensors().values(), strict=True))


def test_a_finished_run_trains_no_further():
    state = _state()
    _run(state, 32)
    before = state.tensors()
    (progress,) = _run(state, 32)
    assert progress.loss is None
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_whole():
    state = _state()
    _run(state, 48)
    before = state.tensors()
    hook = state.net.net.map1.weight.register_hook(lambda gradient: gradient * float("inf"))
    (progress,) = _run(state, 64)
    hook.remove()
    assert progress.gradient_norm is None
    assert state.images_seen == 64
    assert state.skipped_steps == progress.skipped_steps == 1
    assert progress.loss is None
    after = state.tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)
    (progress,) = _run(state, 80)
    assert progress.skipped_steps == 1
    assert progress.loss > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_with_a_loss_that_is_not_finite_is_skipped_whole(monkeypatch, value):
    # The loss is spoilt by an added constant, so that its gradient alone would look sound.
    original = training.edm_loss
    monkeypatch.setattr(training, "edm_loss", lambda *args, **keywords: original(*args, **keywords) + value)
    state = _state()
    before = state.tensors()
    _run(state, 32)
    assert state.skipped_steps == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


def test_too_many_skipped_steps_in_a_row_are_a_divergence(monkeypatch):
    original, calls = training.edm_loss, iter(range(1000))

    def spoilt(*args, **keywords):
        # One sound step in between starts the count anew.
        return original(*args, **keywords) * (1.0 if next(calls) == 2 else float("nan"))

    monkeypatch.setattr(training, "edm_loss", spoilt)
    config = CONFIG.model_copy(update={"max_skipped_steps": 3})
    state = _state(config)
    with pytest.raises(DivergedError, match="not finite in 3 steps in a row, up to image 96"):
        _run(state, 1000, config)
    assert state.skipped_steps == 5
    assert issubclass(DivergedError, FloatingPointError)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_close_to_single(precision):
    config = CONFIG.model_copy(update={"precision": precision})
    single, half = _state(), _state(config)
    # Loss scaling starts with a few skipped steps, so the last step is what can be compared.
    expected = _run(single, 128, progress_every=16)[-1].loss
    assert _run(half, 128, config, progress_every=16)[-1].loss == pytest.approx(expected, rel=0.03)
    assert half.skipped_steps < 6
    assert (half.scaler is None) == (precision == "bfloat16")
    assert all(t.dtype == torch.float32 for name, t in half.tensors().items() if not name.startswith("scaler."))


def test_loss_scaling_backs_off_from_overflow_and_is_saved():
    config = CONFIG.model_copy(update={"precision": "float16"})
    state = _state(config)
    hook = state.net.net.map1.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = state.tensors()
    _run(state, 32, config)
    hook.remove()
    assert state.skipped_steps == 2
    after = state.tensors()
    assert after["scaler.scale"] == before["scaler.scale"] / 4
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("scaler."))
    _run(state, 64, config)
    other = _state(config)
    other.load(state.tensors(), state.images_seen, state.skipped_steps)
    assert 0 < other.tensors()["scaler.scale"] <= after["scaler.scale"]
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in state.tensors().items())
    # A state without loss scaling takes over the rest.
    _state().load(state.tensors(), state.images_seen, state.skipped_steps)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pixels": PIXELS.astype(np.float32)}, r"pixels must be uint8 \[64, 3, 8, 8\], got float32"),
        ({"pixels": PIXELS[:60]}, r"got uint8 \[60, 3, 8, 8\]"),
        ({"classes": None}, "conditions must be None exactly for an unconditional network, got None for 4 classes"),
        ({"classes": CLASSES[:60]}, r"conditions must have shape \[64\], got \[60\]"),
        ({"classes": CLASSES + 1}, r"classes must lie in \[-1, 3\], got 0 to 4"),
        ({"progress_every": 0}, "progress_every must be at least 1, got 0"),
        ({"augment": AugmentConfig()}, r"augment.probability must be 0 exactly .* got 0\.12"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        _run(_state(), 16, **keywords)


def test_features_condition_training_and_their_null_is_zeros():
    features = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features[3] = 0
    unet = NET.model_copy(update={"label_dropout": 0.2})
    state = TrainState.create(unet, EDMConfig(), CONFIG, NO_AUGMENT, 8, 0, 0, "cpu", feature_dim=5)
    before = state.tensors()
    _run(state, 48, classes=features.astype(np.float16))
    after = state.tensors()
    assert not torch.equal(before["net.map_feature.weight"], after["net.map_feature.weight"])
    with pytest.raises(ValueError, match=r"features must have length 1 \(or 0, the null one\), got 2 in row 0"):
        _run(state, 64, classes=features / np.linalg.norm(features[0]) * 2)
    with pytest.raises(ValueError, match=r"conditions must have shape \[64, 5\], got \[64, 4\]"):
        _run(state, 64, classes=features[:, :4])
    with pytest.raises(ValueError, match="conditions must be None exactly for an unconditional network"):
        _run(state, 64, classes=None)


def test_one_run_learns_64_images_by_heart():
    """Told which image it is, the denoiser answers with that image, where on other images it is lost."""
    from sklearn.datasets import load_digits  # Here, so that the workers above need not import it.

    digits = (load_digits().images[:128] * (255 / 16)).round().astype(np.uint8)
    learned, others = np.repeat(digits[:, None], 3, axis=1).reshape(2, 64, 3, 8, 8)
    config = TrainConfig(batch_size=64, learning_rate=1e-2, lr_rampup_kimg=1, ema_halflife_kimg=1)
    unet = NET.model_copy(update={"model_channels": 16})
    state = TrainState.create(unet, EDMConfig(p_mean=-0.5), config, NO_AUGMENT, 8, 64, 0, "cpu")
    progress = _run(state, 180 * 64, config, pixels=learned, classes=np.arange(64), progress_every=30 * 64)
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    errors = []
    for pixels in (learned, others):
        clean = torch.from_numpy(pixels) / 127.5 - 1
        with torch.no_grad():
            answer = state.ema(clean + 2 * noise, torch.full((64,), 2.0), torch.arange(64))
        errors.append((answer - clean).square().mean().item())
    # At sigma = 2 little of an image is left to be seen: what is right is known by heart.
    assert errors[0] < 0.05
    assert errors[0] < 0.1 * errors[1]
    assert progress[-1].loss < 0.4 * progress[0].loss


@pytest.mark.parametrize("backend", ["aot_eager", "none of this name"])
def test_compiled_blocks_train_the_same_network_and_failing_to_compile_does_no_harm(monkeypatch, backend):
    monkeypatch.setattr(compilation, "BACKEND", backend)
    config = CONFIG.model_copy(update={"compile": True})
    plain, compiled = _state(), _state(config)
    _run(plain, 48)
    progress = _run(compiled, 48, config, progress_every=16)
    _assert_close(plain.tensors(), compiled.tensors(), 1e-5)
    works = backend == "aot_eager"
    assert compiled.compiled == works
    assert (progress[0].note is None) == works
    assert all(p.note is None for p in progress[1:])
    if not works:
        assert "goes on without torch.compile" in progress[0].note
        assert backend in progress[0].note
    assert plain.compiled is False
