"""What one Langevin step costs: ours beside torchebm and blackjax, and beside its own parts.

Run ``python benchmarks/kernel.py`` (a few minutes, one thread). It prints the table, writes
``benchmarks/results/kernel.json``, beside what other processors took, and puts the tables into
``docs/scale.md``. What is not installed (``pip install torchebm blackjax``) is left out, and said
so.

The energy is ½‖u‖² + f(u), f a SiLU perceptron of two hidden layers, in float32; chains move side
by side. Each contender takes the same number of steps in turn, over and over, so that whatever else
the machine does falls on all alike; the medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import time

# Before torch and jax are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import numpy as np
import torch
from digits import ROOT, insert, machine
from torch import Tensor, nn

from sklvebm._products import affine, times
from sklvebm.langevin import Differentiated, Noise, init, langevin_step, times_normal
from sklvebm.networks import MLP

SIZES = (
    (4, 64, 256),
    (12, 128, 256),
    (12, 128, 1024),
    (74, 128, 1024),
    (74, 256, 1024),
    (800, 512, 256),
)
STEP_SIZE = 0.01
_SECONDS, _ROUNDS = 0.03, 41
# Just below what glibc's thresholds may rise to.
_LARGE_BLOCK = 2**25 - 2**14


class Problem:
    """One size: chains, a network with weights away from its start, and noise."""

    def __init__(self, d: int, h: int, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.net = MLP([d], (h, h), 1, generator=generator).requires_grad_(False)
        self.net.rest[-1].weight.uniform_(-1 / h**0.5, 1 / h**0.5, generator=generator)
        self.start = torch.randn(n, d, generator=generator)
        self.noise = Noise(generator)

        # As torch has them, which is what a user's module is made of.
        self.layers = [_as_torch_has_it(a) for a in (self.net.first[0], *self.net.rest)]
        first, second, last = self.layers
        self.module = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)

    def log_tilt(self, u: Tensor) -> Tensor:
        return -self.net(u)[..., 0]

    def energy(self, u: Tensor) -> Tensor:
        """What a user would write."""
        return 0.5 * u.square().sum(-1) + self.module(u)[..., 0]

    def log_tilt_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = self.net.vjp(self.net.enter(u))
        return -value[..., 0], self.net.leave(pull(torch.full_like(value, -1.0)), 0)


def _as_torch_has_it(layer: nn.Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features).requires_grad_(False)
    plain.load_state_dict(layer.state_dict())
    return plain


def _ours(log_density, problem: Problem, metropolis: bool):
    state = init(problem.start, log_density)

    def run(n_steps: int) -> None:
        nonlocal state
        for _ in range(n_steps):
            state, _ = langevin_step(
                state, log_density, step_size=STEP_SIZE, noise=problem.noise, metropolis=metropolis
            )

    return run


def by_hand(problem: Problem, metropolis: bool):
    """Ours, with the gradient that shipped energies give."""
    tilt = Differentiated(problem.log_tilt, problem.log_tilt_and_gradient)
    return _ours(times_normal(tilt), problem, metropolis)


def by_autograd(problem: Problem, metropolis: bool):
    """Ours, with the gradient of a user's module."""
    return _ours(lambda u: -problem.energy(u), problem, metropolis)


def torchebm(problem: Problem, metropolis: bool):
    """torchebm's Langevin sampler, which has no Metropolis test."""
    if metropolis:
        return None
    try:
        from torchebm.core import BaseModel
        from torchebm.samplers import LangevinDynamics
    except ImportError:
        return None

    class Energy(BaseModel):
        def forward(self, u: Tensor) -> Tensor:
            return problem.energy(u)

    sampler = LangevinDynamics(Energy(), step_size=STEP_SIZE, device="cpu")
    u = problem.start.clone()

    def run(n_steps: int) -> None:
        nonlocal u
        u = sampler.sample(x=u, n_steps=n_steps)

    return run


def blackjax(problem: Problem, metropolis: bool):
    """blackjax's kernels on all chains at once, compiled: so many steps are one call."""
    try:
        import jax
        import jax.numpy as jnp
        from blackjax.mcmc import diffusions, mala
    except ImportError:
        return None
    weights = [(jnp.asarray(a.weight.numpy()), jnp.asarray(a.bias.numpy())) for a in problem.layers]

    def log_density(u):
        hidden = u
        for weight, bias in weights[:-1]:
            hidden = jax.nn.silu(weight @ hidden + bias)
        return -0.5 * jnp.sum(u * u) - (weights[-1][0] @ hidden + weights[-1][1])[0]

    value_and_gradient = jax.value_and_grad(log_density)
    if metropolis:
        kernel = mala.build_kernel()
        step = jax.vmap(lambda key, state: kernel(key, state, log_density, STEP_SIZE)[0])
        state = jax.vmap(lambda u: mala.init(u, log_density))(jnp.asarray(problem.start.numpy()))
    else:
        one_step = diffusions.overdamped_langevin(value_and_gradient)
        step = jax.vmap(lambda key, state: one_step(key, state, STEP_SIZE))
        start = jnp.asarray(problem.start.numpy())
        state = diffusions.DiffusionState(start, *jax.vmap(value_and_gradient)(start))
    key = jax.random.key(0)

    def many(key, state, n_steps):
        def body(carry, key):
            return step(jax.random.split(key, len(problem.start)), carry), None

        return jax.lax.scan(body, state, jax.random.split(key, n_steps))[0]

    compiled = jax.jit(many, static_argnums=2)

    def run(n_steps: int) -> None:
        nonlocal state, key
        key, own = jax.random.split(key)
        state = jax.block_until_ready(compiled(own, state, n_steps))

    return run


def floor(problem: Problem, metropolis: bool):
    """The matrix products of a value and its gradient, by the faster of torch's libraries."""
    first, second, last = (layer.weight for layer in problem.layers)
    u = problem.start

    def run(n_steps: int) -> None:
        for _ in range(n_steps):
            two = affine(affine(u, first), second)
            affine(two, last)
            times(times(two, second), first)

    return run


def draws(problem: Problem, metropolis: bool):
    """The random numbers of a step alone."""
    start, noise = problem.start, problem.noise

    def run(n_steps: int) -> None:
        for _ in range(n_steps):
            noise.normal(start)
            if metropolis:
                noise.uniform(start[:, 0])

    return run


CONTENDERS = {
    "sklvebm": by_hand,
    "sklvebm, a user's module": by_autograd,
    "torchebm": torchebm,
    "blackjax": blackjax,
    "matrix products": floor,
    "random numbers": draws,
}


def settle_allocator() -> None:
    """Free a large block, as every fit does early on.

    glibc then keeps what is freed. A process that never had one gives the arrays of a step back to
    the system and meets their pages anew at the next, which is not what steps cost in a fit. All
    contenders share the allocator.
    """
    torch.empty(_LARGE_BLOCK, dtype=torch.uint8)


def measure(size: tuple[int, int, int], metropolis: bool) -> dict[str, float]:
    """Median microseconds per step of each contender, whose turns alternate."""
    problem = Problem(*size)
    runs = {name: build(problem, metropolis) for name, build in CONTENDERS.items()}
    runs = {name: run for name, run in runs.items() if run is not None}
    with torch.no_grad():
        runs["matrix products"](10)
        start = time.perf_counter()
        runs["matrix products"](10)
        # About as many steps in a turn as take a few hundredths of a second.
        n_steps = max(3, int(_SECONDS / (2 * (time.perf_counter() - start) / 10)))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(_ROUNDS + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run(n_steps)
                if round_:
                    times[name].append((time.perf_counter() - start) / n_steps * 1e6)
    return {name: float(np.median(values)) for name, values in times.items()}


def page(machines: list[dict]) -> str:
    """Markdown: a table for each processor."""
    return "\n\n".join(table(one["rows"], one["machine"]) for one in machines)


def table(rows: list[dict], where: dict) -> str:
    """Markdown: microseconds, and how ours compares."""
    names = [name for name in CONTENDERS if any(name in row["microseconds"] for row in rows)]
    lines = [
        "| dynamics | d, hidden, chains | " + " | ".join(names) + " | share of the floor |",
        "|" + "---|" * (len(names) + 3),
    ]
    for row in rows:
        found = row["microseconds"]
        cells = " | ".join(f"{found[name]:.0f}" if name in found else "" for name in names)
        share = found["matrix products"] / found["sklvebm"]
        size = ", ".join(map(str, row["size"]))
        lines.append(f"| {row['dynamics']} | {size} | {cells} | {share:.2f} |")
    return "\n".join([*lines, "", f"Microseconds per step; {where['processor']}, one thread."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write the results and the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settle_allocator()
    rows = []
    for metropolis in (False, True):
        for size in SIZES:
            found = measure(size, metropolis)
            rows.append(
                {
                    "dynamics": "MALA" if metropolis else "ULA",
                    "size": size,
                    "microseconds": found,
                }
            )
            text = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
            print(rows[-1]["dynamics"], size, text, flush=True)
    where = machine()
    print(table(rows, where))
    missing = [n for n in ("torchebm", "blackjax") if n not in rows[0]["microseconds"]]
    if missing:
        print("not installed, and left out:", ", ".join(missing))
    if arguments.keep:
        path = ROOT / "benchmarks" / "results" / "kernel.json"
        others = [
            one
            for one in json.loads(path.read_text())
            if one["machine"]["processor"] != where["processor"]
        ]
        machines = [{"machine": where, "rows": rows}, *others]
        path.write_text(json.dumps(machines, indent=1) + "\n")
        insert(ROOT / "docs" / "scale.md", "kernel", page(machines))


if __name__ == "__main__":
    main()
