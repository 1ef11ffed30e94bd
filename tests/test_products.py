"""Products are those of float64 whichever library computes them; shapes and the processor alone decide which."""

import pytest
import torch

from cedm_ray import products
from cedm_ray.products import batched_product, onednn_is_faster, product

LARGE, SMALL = (144, 160, 176), (10, 12, 8)

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)


@pytest.fixture(params=[pytest.param(True, marks=needs_onednn), False], ids=["onednn", "torch"])
def onednn(request, monkeypatch):
    """Whether oneDNN is taken for the faster library, on whatever processor the tests run."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the products that oneDNN computes."""
    seen, original = [], products._inner_product

    def counting(a, b, bias):
        seen.append((*a.shape, b.shape[1]))
        return original(a, b, bias)

    monkeypatch.setattr(products, "_inner_product", counting)
    return seen


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def laid_out(layout, groups, rows, columns, seed, dtype=torch.float32):
    """[G, rows, columns] of one layout in memory."""
    if layout == "rows":
        return draw(groups, rows, columns, seed=seed, dtype=dtype)
    if layout == "columns":
        return draw(groups, columns, rows, seed=seed, dtype=dtype).mT
    if layout == "part":
        return draw(groups, rows + 3, columns + 5, seed=seed, dtype=dtype)[:, 1:-2, 2:-3]
    if layout == "every second":
        return draw(groups, rows, 2 * columns, seed=seed, dtype=dtype)[..., ::2]
    shared = draw(rows, columns, seed=seed, dtype=dtype)
    if layout == "shared columns":
        shared = shared.T.contiguous().T
    return shared.expand(groups, rows, columns)


@pytest.mark.parametrize("b_layout", ["rows", "columns", "part", "every second"])
@pytest.mark.parametrize("a_layout", ["rows", "columns", "part", "every second", "shared", "shared columns"])
@pytest.mark.parametrize(
    ("groups", "shape"), [(1, LARGE), (1, SMALL), (2, SMALL), (2, (400, 150, 40)), (2, (40, 150, 400))], ids=str
)
def test_batched_products_are_those_of_float64(onednn, shape, a_layout, b_layout, groups):
    rows, summed, columns = shape
    a = laid_out(a_layout, groups, rows, summed, seed=1)
    b = laid_out(b_layout, groups, summed, columns, seed=2)
    bias, before = draw(groups, columns, seed=3), draw(groups, rows, columns, seed=4)
    exact = a.double() @ b.double()
    for how, start in (({}, 0.0), ({"bias": bias}, bias.double()[:, None]), ({"add": True}, before.double())):
        out = torch.empty(groups, rows + 2, columns)[:, 1:-1].copy_(before)
        assert batched_product(a, b, out, **how) is out
        torch.testing.assert_close(out.double(), exact + start, rtol=1e-4, atol=1e-4)
    for with_bias in (None, bias[0]):
        expected = exact[0] if with_bias is None else exact[0] + with_bias.double()
        torch.testing.assert_close(product(a[0], b[0], with_bias).double(), expected, rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("shape", [LARGE, (400, 150, 40)], ids=str)
@pytest.mark.parametrize("a_layout", ["shared", "shared columns", "rows", "columns"])
def test_a_product_is_the_same_to_the_bit_in_whatever_company(monkeypatch, shape, a_layout):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    rows, summed, columns = shape
    a, b = laid_out(a_layout, 4, rows, summed, seed=1), laid_out("rows", 4, summed, columns, seed=2)
    together = batched_product(a, b, torch.empty(4, rows, columns))
    for first, last in ((0, 1), (1, 3), (3, 4)):
        some = batched_product(a[first:last], b[first:last], torch.empty(last - first, rows, columns))
        assert torch.equal(some, together[first:last])


@needs_onednn
def test_onednn_computes_large_float32_products_and_no_others(monkeypatch, calls):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    product(draw(*LARGE[:2]), draw(*LARGE[1:]))
    assert calls == [LARGE]
    batched_product(draw(3, *LARGE[:2]), draw(3, *LARGE[1:]), torch.empty(3, LARGE[0], LARGE[2]))
    assert calls == 4 * [LARGE]
    del calls[:]
    for dtype in (torch.float64, torch.bfloat16):
        product(draw(*LARGE[:2], dtype=dtype), draw(*LARGE[1:], dtype=dtype))
    product(draw(*SMALL[:2]), draw(*SMALL[1:]))
    # One row, and a factor that would have to be copied for too few columns.
    product(draw(1, 2000), draw(2000, 2000))
    product(draw(200, 200).T, draw(200, 60))
    product(torch.empty(LARGE[:2], device="meta"), torch.empty(LARGE[1:], device="meta"))
    assert calls == []


@needs_onednn
def test_the_smaller_factor_is_transposed_and_a_shared_one_once(monkeypatch, calls):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    wide, narrow = draw(500, 900), draw(500, 60, seed=1)
    found = product(wide.T, narrow)
    assert calls == [(60, 500, 900)]
    torch.testing.assert_close(found, wide.T @ narrow, rtol=1e-4, atol=1e-4)
    copies, original = [], torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda t: copies.append(t.is_contiguous()) or original(t))
    batched_product(draw(200, 100).T.expand(5, 100, 200), draw(5, 200, 300), torch.empty(5, 100, 300))
    assert copies.count(False) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 26\n", False),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: unknown\n", False),
        ("CPU implementer\t: 0x41\n", False),
        ("", False),
    ],
)
def test_which_processors_count(tmp_path, text, answer):
    description = tmp_path / "cpuinfo"
    description.write_text(text)
    assert products._is_zen_5(description) is answer


def test_a_system_that_tells_no_processor_has_none_of_them(tmp_path):
    assert products._is_zen_5(tmp_path / "cpuinfo") is False


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch.backends.cpu, "get_cpu_capability"),
        (torch.backends.mkl, "is_available"),
        (torch.backends.mkldnn, "is_available"),
        (products, "_is_zen_5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_condition_is_needed(owner, name, monkeypatch):
    answers = {"get_cpu_capability": ("AVX512", "AVX2")}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products, "_is_zen_5", lambda path: True)
    try:
        onednn_is_faster.cache_clear()
        assert onednn_is_faster() is hasattr(torch.ops.mkldnn, "_linear_pointwise")
        monkeypatch.setattr(owner, name, lambda *_: answers.get(name, (True, False))[1])
        onednn_is_faster.cache_clear()
        assert onednn_is_faster() is False
    finally:
        onednn_is_faster.cache_clear()


@needs_onednn
def test_onednn_is_given_no_part_of_a_larger_matrix_which_it_has_no_kernel_for(monkeypatch):
    given, original = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *a: given.extend(a[:2]) or original(*a))
    a, b = (laid_out("part", 1, *shape, seed=seed)[0] for seed, shape in enumerate((LARGE[:2], LARGE[1:])))
    found = product(a, b)
    torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)
    assert len(given) == 2
    assert all(factor.is_contiguous() or factor.T.is_contiguous() for factor in given)
