"""One thread for torch: `with one_thread()` makes sums the same on every machine.

A sum depends on how many threads share it, so whatever must be repeatable to the byte is computed
in one; several processes use the cores (`processes`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
