"""Products by oneDNN are those by MKL: held to what single precision can be off by at most."""

import pytest
import torch
from torch import nn

from sklvebm import _products
from sklvebm._products import affine, times

SHAPES = [(7, 5, 3), (1, 4, 4), (64, 16, 2), (130, 33, 40)]


@pytest.fixture
def onednn(monkeypatch):
    """Every product of float32 goes to oneDNN, whatever the processor."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None:
        pytest.skip("this torch was built without oneDNN")
    calls = []

    def counted(*args):
        calls.append(args)
        return operator(*args)

    monkeypatch.setattr(_products, "_LARGE", 0)
    monkeypatch.setattr(_products, "_LARGE_RECORDED", 0)
    monkeypatch.setattr(_products, "_onednn", lambda: counted)
    return calls


def assert_product(found, a, b, added=None):
    """``a (m, k)`` times ``b (k, n)``, as far as k + 1 rounded terms may be off."""
    a, b = a.double(), b.double()
    exact, size = a @ b, a.abs() @ b.abs()
    if added is not None:
        exact, size = exact + added.double(), size + added.double().abs()
    bound = 2 * (a.shape[1] + 1) * torch.finfo(torch.float32).eps * size
    assert found.dtype == torch.float32
    assert found.shape == exact.shape
    assert ((found - exact).abs() <= bound).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape, onednn, generator):
    m, k, n = shape
    x = torch.randn(m, k, generator=generator)
    weight, bias = torch.randn(n, k, generator=generator), torch.randn(n, generator=generator)
    assert_product(affine(x, weight), x, weight.T)
    assert_product(affine(x, weight, bias), x, weight.T, bias)
    assert_product(times(x, weight.T.contiguous()), x, weight.T)
    assert_product(times(x, weight.T), x, weight.T)
    # As columns of a wider array, and one row for all.
    wide = torch.randn(m, 2 * k, generator=generator)
    assert_product(affine(wide[:, k:], weight), wide[:, k:], weight.T)
    assert_product(affine(x[:1].expand(m, k), weight), x[:1].expand(m, k), weight.T)
    several = affine(x[None].expand(2, m, k), weight, bias)
    assert_product(several[1], x, weight.T, bias)
    assert len(onednn) == 7


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, onednn, generator):
    m, k, n = shape
    x = torch.randn(m, k, generator=generator, requires_grad=True)
    weight = torch.randn(n, k, generator=generator, requires_grad=True)
    bias = torch.randn(n, generator=generator, requires_grad=True)
    gradient = torch.randn(2, m, n, generator=generator)
    output = affine(x.expand(2, m, k), weight, bias)
    by_x, by_weight, by_bias = torch.autograd.grad(output, (x, weight, bias), gradient)
    assert len(onednn) > 1
    a, b = x.detach(), weight.detach()
    assert_product(by_x, torch.cat(list(gradient), 1), torch.cat([b, b]))
    assert_product(by_weight, gradient.flatten(0, 1).T, torch.cat([a, a]))
    assert_product(by_bias[None], torch.ones(1, 2 * m), gradient.flatten(0, 1))


@pytest.mark.parametrize("needed", range(3))
def test_a_gradient_by_one_of_three(needed, onednn, generator):
    """Whichever it is, it is found, and the others are not asked for."""
    given = [torch.randn(*shape, generator=generator) for shape in ((9, 4), (6, 4), (6,))]
    twins = [value.double() for value in given]
    for some in (given, twins):
        some[needed].requires_grad_(True)
    affine(*given).square().sum().backward()
    nn.functional.linear(*twins).square().sum().backward()
    torch.testing.assert_close(given[needed].grad, twins[needed].grad.float())
    assert all(value.grad is None for i, value in enumerate(given) if i != needed)


def test_gradients_of_gradients(onednn, generator):
    given = [torch.randn(*shape, generator=generator) for shape in ((9, 4), (6, 4), (6,))]

    def second(function, values):
        values = [value.clone().requires_grad_(True) for value in values]
        value = torch.tanh(function(*values)).sum()
        first = torch.autograd.grad(value, values, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), values)

    found = second(affine, given)
    exact = second(nn.functional.linear, [value.double() for value in given])
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4)


def test_numbers_of_rows_are_few():
    """A kernel is compiled for each of them: at most an eighth is added above the least step."""
    filled = {n: _products._filled(n) for n in range(1, 2**16 + 1)}
    assert all(n <= up for n, up in filled.items())
    assert all(up < n + max(32, n / 8) for n, up in filled.items())
    assert len(set(filled.values())) <= 8 * 16
    assert filled[2**10] == 2**10


def test_what_goes_to_onednn(monkeypatch):
    """Large products of float32 on the processor, where it is switched on in torch."""
    monkeypatch.setattr(_products, "_onednn", lambda: print)
    takes, large = _products._is_for_onednn, torch.zeros(1024, 128)
    assert takes(large, 128)
    assert takes(large, 10)
    assert not takes(large, 1)
    assert not takes(large[:8], 128)
    assert not takes(large.double(), 128)
    assert not takes(large.to("meta"), 128)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not takes(large, 128)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
    monkeypatch.setattr(_products, "_onednn", lambda: None)
    assert not takes(large, 128)


@pytest.mark.parametrize(
    ("named", "is_amd"),
    [
        ("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n", True),
        ("vendor_id\t: GenuineIntel\nmodel name\t: Intel Xeon\n", False),
        (None, True),
    ],
)
def test_whose_processor_it_is(named, is_amd, monkeypatch, tmp_path):
    """From Linux's table, or from what other systems say."""
    path = tmp_path / "cpuinfo"
    if named is not None:
        path.write_text(named)
    monkeypatch.setattr(_products, "_CPUINFO", path)
    windows = "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD"
    monkeypatch.setattr(_products.platform, "processor", lambda: windows)
    assert _products._is_amd() is is_amd


@pytest.mark.skipif(_products._onednn() is None, reason="MKL is the faster one here")
def test_a_row_rounds_alike_in_any_place(generator):
    for k, n in ((128, 128), (13, 128), (128, 10), (30, 30)):
        x = torch.randn(3001, k, generator=generator)
        weight = torch.randn(n, k, generator=generator)
        order = torch.randperm(len(x), generator=generator)
        assert torch.equal(affine(x[order], weight), affine(x, weight)[order])
        assert torch.equal(times(x[order], weight.T), affine(x, weight)[order])
