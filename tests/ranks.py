"""Fits in several local processes, joined by gloo: the helper of test_distributed.

``run`` starts a process a rank. Each does a list of jobs in turn and writes down what came of them:
a fitted estimator, or an error.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """Keywords of ``LVEBMEstimator`` and of its ``fit``, by rank where these are lists."""

    params: Any
    fit: Any
    patch: str = ""


class Result(NamedTuple):
    """A fitted ``model`` or an ``error``; ``trained`` is a digest of the energy of this rank."""

    model: Any
    error: str
    trained: str
    seconds: float


def run(folder: Path, jobs: list[Job], size: int = 2, timeout: float = 600) -> list[list[Result]]:
    """What each rank made of each job; a rank that was killed leaves off early."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs").write_bytes(pickle.dumps(jobs))
    # As a module of that name, so that what is pickled there can be read here.
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import ranks; ranks.main()"
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder), str(size)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(size)]
    try:
        for process in ranks:
            process.wait(timeout)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [_results(folder / f"rank{rank}") for rank in range(size)]


def _results(path: Path) -> list[Result]:
    found = []
    with path.open("rb") as file:
        while True:
            try:
                found.append(pickle.load(file))
            except EOFError:
                return found


def kill_second_rank_at_update(n: int) -> None:
    """From now on: rank 1 is gone, without a word, when it begins its n-th update."""
    import torch.distributed as dist

    from sklvebm.saddle import Saddle

    update, calls = Saddle.update, []

    def killed(*args):
        calls.append(1)
        if dist.get_rank() == 1 and len(calls) == n:
            os._exit(1)
        return update(*args)

    Saddle.update = killed


def report_on_first_rank(answer) -> None:
    """From now on: ``answer(row)`` is what a callback on rank 0 says; rank 1 is not asked."""
    import torch.distributed as dist

    from sklvebm._callbacks import Reporter

    def called(self, row, snapshot):
        assert dist.get_rank() == 0
        return answer(row)

    Reporter.__call__ = called


def stop_at_third(row: dict) -> bool:
    return row["n_iter"] >= 10


def fail_at_third(row: dict) -> bool:
    if row["n_iter"] >= 10:
        raise OSError("no space for the log")
    return False


def _work(job: Job, rank: int, seen: list[str]) -> Result:
    from sklvebm import LVEBMEstimator

    params, fit = (part[rank] if isinstance(part, list) else part for part in (job.params, job.fit))
    started, model, error = time.perf_counter(), None, ""
    try:
        if job.patch:
            exec(job.patch, globals())
        model = LVEBMEstimator(**params).fit(**fit)
    except (RuntimeError, ValueError, OSError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    return Result(model, error, seen[-1] if seen else "", time.perf_counter() - started)


def _watch_training() -> list[str]:
    """Digests of the trained energy of this rank, before rank 0 sends anyone the model."""
    from sklvebm._arrays import state_to_arrays
    from sklvebm.checkpoint import digest
    from sklvebm.training import Trainer

    finished, seen = Trainer._finished, []

    def watched(self):
        seen.append(digest(state_to_arrays(self.energy).values()))
        return finished(self)

    Trainer._finished = watched
    return seen


def main() -> None:
    """What a process of :func:`run` does: its arguments are the folder, the size and its rank."""
    import torch
    import torch.distributed as dist

    folder, size, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    seen = _watch_training()
    with (folder / f"rank{rank}").open("wb") as file:
        for job in pickle.loads((folder / "jobs").read_bytes()):
            pickle.dump(_work(job, rank, seen), file)
            file.flush()
    dist.destroy_process_group()
