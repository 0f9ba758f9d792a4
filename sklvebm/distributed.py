"""The processes that fit one model together, by the collectives of torch.distributed.

Every process holds a shard of the rows and of the pool and makes the same updates, from the sum of
all gradients. What is decided is decided by rank 0, and sent to the others: they cannot part ways.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ._arrays import generator_from_seed

T = TypeVar("T")


class LostRankError(RuntimeError):
    """Another process of the group ended, or no longer answers."""


class Group:
    """A group of processes; by default this one alone, for which nothing here does anything.

    Parameters
    ----------
    rank, size : int
        Which of how many processes this is.
    device : torch.device
        Where the backend takes tensors.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cpu") if device is None else device
        self.advice = ""

    @classmethod
    def found(cls) -> Group:
        """The default process group, where one is initialised."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @contextmanager
    def _collective(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostRankError(
                f"rank {self.rank} of {self.size} lost the others: one of them ended, or did not "
                f"answer in time. {self.advice} The backend says: {error}"
            ) from error

    # -- shards ----------------------------------------------------------------------------------

    def shard(self, rows: Tensor) -> Tensor:
        """This rank's rows: every ``size``-th, so that shards differ by one row at most."""
        return rows if self.size == 1 else rows[self.rank :: self.size].clone()

    def share(self, total: int) -> int:
        """How many of ``total`` are in this rank's shard."""
        return len(range(self.rank, total, self.size))

    def generator(self, generator: torch.Generator) -> torch.Generator:
        """A stream of this rank's own, from one that is the same on all ranks."""
        if self.size == 1:
            return generator
        device = generator.device
        seed = int(torch.randint(2**31, (1,), generator=generator, device=device))
        own = np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]
        return generator_from_seed(own, device)

    # -- what all ranks get ----------------------------------------------------------------------

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each by its sum over the ranks, in one all-reduce."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self.device)
        with self._collective():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean(self, tensor: Tensor) -> Tensor:
        """Its mean over the ranks."""
        total = tensor.clone()
        self.sum_([total])
        return total / self.size

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in the order of the ranks."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        with self._collective():
            dist.all_gather_object(parts, rows.cpu())
        return torch.cat(parts).to(rows.device)

    def collect(self, value: T) -> list[T]:
        """The values of all ranks on rank 0; the others get an empty list."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with self._collective():
            dist.gather_object(value, values)
        return values or []

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make()`` is on rank 0, which alone calls it. What it raises ends all ranks."""
        if self.size == 1:
            return make()
        if self.rank > 0:
            value, failure = self._broadcast(None)
            if failure is not None:
                raise RuntimeError(f"rank 0 ended the fit: {failure}")
            return value
        try:
            value = make()
        except BaseException as error:
            # The others need not be there to be told; what happened here is what is to be raised.
            with contextlib.suppress(LostRankError):
                self._broadcast((None, f"{type(error).__name__}: {error}"))
            raise
        return self._broadcast((value, None))[0]

    def _broadcast(self, message: Any) -> Any:
        messages = [message]
        with self._collective():
            dist.broadcast_object_list(messages, src=0, device=self.device)
        return messages[0]

    def agree(self, named: dict[str, Any]) -> None:
        """Make sure that all ranks were given the same.

        Raises
        ------
        ValueError
            On every rank, if one was not.
        """
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        with self._collective():
            dist.all_gather_object(everyone, named)
        for rank, other in enumerate(everyone):
            for name, value in other.items():
                if value != everyone[0][name]:
                    raise ValueError(
                        "every rank must fit the same table with the same parameters: "
                        f"{name} is {everyone[0][name]!r} on rank 0 and {value!r} on rank {rank}."
                    )
