"""The processor's cores on work that falls into independent parts.

Torch divides one operation at a time, which small arrays gain little from. Here each part has a
thread of its own, in which operations are undivided: as many threads as torch has been given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Part = TypeVar("Part")
Result = TypeVar("Result")

_ONE_INSIDE = Lock()


def in_order(call: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """``call`` of each of ``parts``, in their order, while the next ones are under way.

    A result is the same to the bit whatever the number of parts and of threads.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        yield from map(call, parts)
        return
    # The number set in a thread is that of its own operations, and of threads begun later.
    pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(call, part))
            if len(waiting) > 2 * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)


@contextmanager
def undivided() -> Iterator[None]:
    """A context in which numpy's linear algebra has one thread.

    On small matrices its threads, which wait for each other and for torch's, take several times as
    long as one. Their number is the process's: of fits in several threads one is inside at a time,
    or the last to leave would put back what it found the first had set.
    """
    with _ONE_INSIDE, threadpool_limits(1, user_api="blas"):
        yield
