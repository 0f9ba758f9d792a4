"""One seed a run, printed, from which every test derives its own."""

from __future__ import annotations

import hashlib
import os
import secrets

# Before MKL is first asked for a product. On AMD processors it else rounds a row by its place in an
# array; docs/trust.md tells users.
os.environ.setdefault("MKL_CBWR", "AUTO")

import numpy as np
import pytest
import torch

import sklvebm


def pytest_addoption(parser):
    parser.addoption(
        "--seed",
        type=int,
        default=None,
        help="Seed of every random test; a fresh one by default. Replay a failure with its seed.",
    )
    parser.addoption(
        "--installed",
        action="store_true",
        help="Refuse to test a package that lies anywhere else than in site-packages.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if config.option.installed and "site-packages" not in sklvebm.__file__:
        raise pytest.UsageError(f"{sklvebm.__file__} is not the installed package")
    # Workers of pytest-xdist receive the option from their controller, so all share one seed.
    if config.option.seed is None:
        config.option.seed = secrets.randbits(32)


def _replay(config) -> str:
    return f"seed {config.option.seed} (replay with --seed={config.option.seed})"


def pytest_report_header(config):
    return _replay(config)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("seed", _replay(item.config)))


def pytest_terminal_summary(terminalreporter, config):
    # A quiet run has no header.
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(_replay(config))


@pytest.fixture
def seed(request) -> int:
    """A seed of this test alone, from --seed and the test's name: order does not matter."""
    text = f"{request.config.option.seed}:{request.node.nodeid}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@pytest.fixture
def generator(seed) -> torch.Generator:
    """A torch generator on the CPU, seeded by ``seed``."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rng(seed) -> np.random.Generator:
    """A numpy generator, seeded by ``seed``."""
    return np.random.default_rng(seed)
