"""The optimizer is torch's AdamW."""

import pytest
import torch
from torch import nn

from sklvebm.optimizer import AdamW


@pytest.fixture
def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = ((3,), (4, 2), (5,), (2, 2))
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(parameters, step):
    """Set them; the last parameter has none at every other step."""
    generator = torch.Generator().manual_seed(step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    if step % 2:
        parameters[-1].grad = None


def ours(parameters):
    matrices = [p for p in parameters if p.ndim == 2]
    return AdamW(parameters, [*matrices, nn.Parameter(torch.ones(1, 1))], rate=0.1, weight_decay=2)


def test_it_makes_torch_s_steps(parameters):
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    optimizer = ours(parameters)
    groups = [
        {"params": [p for p in twins if p.ndim == 2], "weight_decay": 2},
        {"params": [p for p in twins if p.ndim == 1], "weight_decay": 0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.1)
    for step in range(6):
        share = 1 - step / 6
        for group in reference.param_groups:
            group["lr"] = share * 0.1
        for some in (parameters, twins):
            gradients(some, step)
        optimizer.step(share * optimizer.rate)
        reference.step()
    for mine, theirs in zip(parameters, twins, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_its_state_goes_on_from_where_it_was(parameters):
    first = ours(parameters)
    gradients(parameters, 0)
    first.step(first.rate)
    first.rate /= 3
    state = first.state_dict()
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    second = ours(twins)
    second.load_state_dict(state)
    for some, optimizer in ((parameters, first), (twins, second)):
        gradients(some, 1)
        optimizer.step(0.5 * optimizer.rate)
    for mine, theirs in zip(parameters, twins, strict=True):
        assert torch.equal(mine, theirs)
    # What was kept shares nothing with either.
    gradients(parameters, 0)
    assert float(state["moments"][0][2]) == 1.0


def test_clearing_and_forgetting(parameters):
    optimizer = ours(parameters)
    gradients(parameters, 0)
    optimizer.step(optimizer.rate)
    optimizer.clear()
    assert all(p.grad is None for p in parameters)
    before = [p.detach().clone() for p in parameters]
    optimizer.step(optimizer.rate)
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    optimizer.forget()
    assert all(float(m.abs().sum()) == 0 for of in optimizer.state_dict()["moments"] for m in of)
