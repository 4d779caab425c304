"""KID and MMD of sets that do not fit into memory, from disjoint blocks.

`kid_of_blocks` and `mmd_of_blocks` take blocks of rows of both sets and use each row once: the
estimates of blocks are independent, so their mean has an honest standard error. (FID needs only
`moments.Moments.fold`.) Less sharp than the whole sets, whose kernel matrices would be n x n.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt

from rarescan.errors import InputError
from rarescan.evaluation.metrics import Array, Estimate, cubic, mmd_of_kernels, rbf

Blocks = Iterable[npt.NDArray[np.floating]]

ROWS = 1000
"""Rows of a block of each set."""


def kid_of_blocks(real: Blocks, synthetic: Blocks, *, rows: int = ROWS) -> Estimate:
    """Return the mean KID of disjoint blocks and its standard error.

    Parameters
    ----------
    real, synthetic : iterables of float arrays, shape (any, d)
        In any lengths: they are cut anew into blocks of `rows`. What is left over at the end,
        and what one set has more than the other, is not used.
    rows : int
        Rows of each set in a block; memory is about 3 rows^2 + 2 rows d numbers.

    Raises
    ------
    InputError
        Fewer than two blocks, which have no standard error.
    """
    return _of_blocks(real, synthetic, cubic, rows)


def mmd_of_blocks(real: Blocks, synthetic: Blocks, *, sigma2: float, rows: int = ROWS) -> Estimate:
    """Return the same as `kid_of_blocks` for the MMD^2 with a frozen RBF kernel."""
    return _of_blocks(real, synthetic, partial(rbf, sigma2=sigma2), rows)


def _of_blocks(
    real: Blocks, synthetic: Blocks, kernel: Callable[[Array, Array], Array], rows: int
) -> Estimate:
    values = [
        mmd_of_kernels(kernel(x, x), kernel(y, y), kernel(x, y)).value
        for x, y in zip(_recut(real, rows), _recut(synthetic, rows), strict=False)
    ]
    if len(values) < 2:
        raise InputError(
            f"{len(values)} blocks of {rows} persons have no standard error.",
            remedy="Use smaller blocks, or the functions for whole sets.",
        )
    se = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(value=float(np.mean(values)), se=se)


def _recut(blocks: Blocks, rows: int) -> Iterator[Array]:
    """Yield float64 blocks of exactly `rows` rows."""
    kept: list[npt.NDArray[np.floating]] = []
    for block in chain(blocks):
        kept.append(block)
        while sum(map(len, kept)) >= rows:
            joined = np.concatenate(kept)
            yield joined[:rows].astype(np.float64)
            kept = [joined[rows:]]
