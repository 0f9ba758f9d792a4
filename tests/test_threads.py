"""Work in independent parts: their order, their bits, and the number of threads afterwards."""

import threading

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from threadpoolctl import threadpool_info, threadpool_limits

from sklvebm import LVEBMEstimator
from sklvebm._threads import in_order, undivided


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
