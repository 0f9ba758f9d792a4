"""Seconds and score of one fit that processes share, and how far apart they end.

    torchrun --nproc-per-node 2 benchmarks/distributed.py
    python benchmarks/distributed.py    # one process, to compare with

It prints a line. Where there are GPUs, each process takes one, and they speak nccl.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

import numpy as np
import torch
import torch.distributed as dist
from sklearn.exceptions import ConvergenceWarning

from sklvebm import LVEBMEstimator


def table(n_rows: int, n_features: int) -> np.ndarray:
    """Rows on a curved surface of three dimensions, and noise: ``(n_rows, n_features)``."""
    rng = np.random.default_rng(0)
    z, noise = rng.standard_normal((n_rows, 3)), rng.standard_normal((n_rows, n_features))
    return np.sin(1.5 * z @ rng.standard_normal((3, n_features))) + 0.3 * noise


def join() -> tuple[int, int]:
    """Rank and number of processes; alone where torchrun did not start this."""
    if "RANK" not in os.environ:
        return 0, 1
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def largest_difference(scores: np.ndarray, size: int) -> float:
    """Between rank 0's scores of the same rows and any other's, in nats."""
    every = [scores] * size
    if size > 1:
        dist.all_gather_object(every, scores)
    return float(max(np.abs(other - every[0]).max() for other in every))


def main() -> None:
    """Fit, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=512)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rank, size = join()
    X = table(arguments.rows + 500, arguments.features)
    model = LVEBMEstimator(
        3, max_iter=arguments.updates, batch_size=arguments.batch_size, random_state=0
    )
    start = time.perf_counter()
    model.fit(X[500:])
    seconds = time.perf_counter() - start
    scores = model.score_samples(X[:500])
    apart = largest_difference(scores, size)
    if rank == 0:
        print(
            f"{size} process(es) on {model.device_}, {torch.get_num_threads()} thread(s) each: "
            f"{seconds:.1f} s, {scores.mean():.3f} nats per row on fresh rows, "
            f"ranks apart by {apart:.1e} nats"
        )
    if size > 1:
        # Nobody leaves while another still talks.
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
