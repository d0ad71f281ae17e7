"""Tasks that threads take from one list until it is empty, for torch lets go of the interpreter lock while it computes.

Each thread computes with one thread of torch: otherwise the last bits of a QR, of a sum or of a vectorised loop's tail
would depend on how many there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

Task = Callable[[], object]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """A context in which torch computes with one thread, here and in threads that are started inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_all(tasks: Sequence[Task], threads: int) -> None:
    """Runs tasks in any order; the first that fails ends all.

    Args:
        tasks: What is to be done.
        threads: How many run at a time; one of them is the caller's.
    """
    left = deque(tasks)

    def take() -> Task | None:
        try:
            return left.popleft()
        except IndexError:
            return None

    def work() -> None:
        try:
            with torch.no_grad():
                for task in iter(take, None):
                    task()
        except BaseException:
            left.clear()
            raise

    others = min(threads, len(left)) - 1
    with one_thread_each():
        if others <= 0:
            work()
            return
        with ThreadPoolExecutor(others) as pool:  # leaving it waits for them
            helping = [pool.submit(work) for _ in range(others)]
            work()
            for other in helping:
                other.result()
