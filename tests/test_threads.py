"""Work in independent parts: their order, their bits, and the number of threads afterwards."""

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_info, threadpool_limits

from sklvebm import LVEBMEstimator
from sklvebm._threads import in_order, undivided
from sklvebm.energies import CustomEnergy
from sklvebm.langevin import Noise
from sklvebm.proposals import Proposal


@pytest.fixture(params=[1, 3])
def n_threads(request):
    """Torch's number of threads in the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_undivided_operations(n_threads):
    def call(i):
        return i, torch.get_num_threads(), threading.get_ident()

    parts, threads, callers = zip(*in_order(call, range(50)), strict=True)
    assert parts == tuple(range(50))
    assert set(threads) == {1}
    assert (threading.get_ident() in callers) == (n_threads == 1)
    assert torch.get_num_threads() == n_threads


def test_an_error_is_raised_and_the_rest_is_dropped(n_threads):
    called = []

    def call(i):
        called.append(i)
        if i == 2:
            raise ValueError("of part 2")
        return i

    found = in_order(call, range(1000))
    with pytest.raises(ValueError, match="of part 2"):
        list(found)
    assert len(called) < 100
    assert torch.get_num_threads() == n_threads


def test_one_may_stop_listening(n_threads):
    found = in_order(lambda i: i, range(1000))
    assert next(found) == 0
    found.close()
    assert torch.get_num_threads() == n_threads


def test_linear_algebra_of_numpy_is_undivided_for_a_while():
    def threads():
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with undivided():
            assert threads() == {1}
        assert threads() == before == {2}


def test_answers_are_the_same_to_the_bit_on_any_number_of_threads():
    X = np.tile(load_iris().data, (4, 1))
    before, answers = torch.get_num_threads(), []
    model = LVEBMEstimator(2, max_iter=30, random_state=0).fit(X)
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            answers.append((model.score_samples(X), model.transform(X)))
    finally:
        torch.set_num_threads(before)
    for scores, latents in answers[1:]:
        np.testing.assert_array_equal(scores, answers[0][0])
        np.testing.assert_array_equal(latents, answers[0][1])


def test_fits_in_several_threads_leave_the_process_as_it_was(monkeypatch):
    """What a fit sets for a moment is the whole process's: two must not be inside at once."""
    inside, most, fit = [], [], GaussianMixture.fit

    def slow(self, rows):
        inside.append(self)
        most.append(len(inside))
        time.sleep(0.05)
        try:
            return fit(self, rows)
        finally:
            inside.remove(self)

    monkeypatch.setattr(GaussianMixture, "fit", slow)
    members = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))

    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def propose(seed):
        return Proposal.fitted(members, Noise(torch.Generator().manual_seed(seed)))

    before, filters, settings = blas(), warnings.filters, list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(propose, range(8)))
    assert most == [1] * 8
    assert blas() == before
    assert warnings.filters is filters
    assert list(warnings.filters) == settings


def test_a_factory_has_the_global_generator_to_itself():
    """Modules built in several threads are those of their seeds, and no draw of others is lost."""

    def factory(d, k):
        time.sleep(0.02)
        module = torch.nn.Linear(d + k, 1)
        time.sleep(0.02)
        return module

    def built(seed):
        generator = torch.Generator().manual_seed(seed)
        energy = CustomEnergy(factory).build(3, 2, generator=generator)
        return next(energy.tilt.module.parameters())

    expected, state = [built(seed) for seed in range(4)], torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(built, range(4)))
    assert all(map(torch.equal, found, expected))
    assert torch.equal(torch.get_rng_state(), state)
