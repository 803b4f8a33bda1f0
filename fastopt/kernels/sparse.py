"""Row-sparse gradients: of an embedding table, where a batch touches few rows."""

import math
from typing import Any

import numpy as np

from .rows import add_rows

__all__ = ["SparseRows"]


class SparseRows:
    """The gradient of a parameter in which only some rows are not zero.

    Args:
        indices: the rows, whole numbers from 0; shape (k,). A row named more than once has the sum of its values.
        values: float32, float64, complex64 or complex128; shape (k, *shape[1:]). Only read.
        shape: the shape of the parameter.

    A `scipy.sparse` matrix (CSR, CSC, COO) serves as a gradient too: its touched rows are those with a stored entry.
    SGD, Adagrad and SparseAdam accept sparse gradients. The cost of a step follows the touched rows, not the table,
    and its result has the same bits for any number of threads.

    Raises:
        TypeError, ValueError: an argument is not as said above.

    >>> import numpy as np, fastopt
    >>> table = np.zeros((1000, 2), "float32")
    >>> opt = fastopt.SGD(table, lr=1.0)
    >>> opt.step([fastopt.SparseRows([7, 3, 7], np.ones((3, 2), "float32"), table.shape)])
    >>> table[[3, 7]]
    array([[-1., -1.],
           [-2., -2.]], dtype=float32)
    """

    __slots__ = ("indices", "shape", "values")

    def __init__(self, indices: Any, values: Any, shape: tuple[int, ...]) -> None:
        rows, values = np.asarray(indices), np.asarray(values)
        shape = tuple(int(length) for length in shape)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise TypeError(f"indices must be whole numbers of shape (k,), got {rows.dtype} of shape {rows.shape}")
        if not shape:
            raise ValueError("shape must have at least one dimension")
        if values.dtype.char not in "fdFD":
            raise TypeError(f"values must be float32, float64, complex64 or complex128, got {values.dtype}")
        if values.shape != (len(rows), *shape[1:]):
            raise ValueError(f"values must have shape {(len(rows), *shape[1:])}, got {values.shape}")
        if len(rows) and not 0 <= rows.min() <= rows.max() < shape[0]:
            raise ValueError(f"indices must be from 0 to {shape[0] - 1}, got {rows.min()} to {rows.max()}")
        self.indices, self.values = summed(rows.astype(np.int64, copy=False), values)
        self.shape = shape

    @classmethod
    def of(cls, matrix):
        """The rows of a `scipy.sparse` matrix that have a stored entry."""
        entries = matrix.tocoo()
        rows, place = np.unique(entries.row, return_inverse=True)
        values = np.zeros((len(rows), matrix.shape[1]), entries.data.dtype)
        np.add.at(values, (place, entries.col), entries.data)
        return cls(rows, values, matrix.shape)

    def to_dense(self):
        """The gradient as an ordinary array."""
        dense = np.zeros(self.shape, self.values.dtype)
        dense[self.indices] = self.values
        return dense

    def over(self, rows):
        """The same gradient with zeros for more rows: `rows` are sorted and hold all of `indices`."""
        values = np.zeros((len(rows), *self.shape[1:]), self.values.dtype)
        values[np.searchsorted(rows, self.indices)] = self.values
        wider = object.__new__(SparseRows)
        wider.indices, wider.values, wider.shape = rows, values, self.shape
        return wider

    def __repr__(self):
        return f"SparseRows({len(self.indices)} rows of {self.shape}, {self.values.dtype})"


def summed(rows, values):
    """Contiguous rows and values in which no row is named twice; sums are in the order given."""
    bits = max(1, len(rows) - 1).bit_length()
    keys = np.sort((rows << bits) | np.arange(len(rows)))  # by row, then by place: a stable order from one fast sort
    ordered = keys >> bits
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    if len(rows) == 0 or first.all():
        return np.ascontiguousarray(rows), np.ascontiguousarray(values)
    sums = np.zeros((np.count_nonzero(first), *values.shape[1:]), values.dtype)
    real = values.real.dtype
    order = keys & ((1 << bits) - 1)
    add_rows(pairs(sums, real), pairs(np.ascontiguousarray(values), real), order, np.cumsum(first) - 1)
    return ordered[first], sums


def pairs(array, dtype):
    """A matrix of reals over the memory of `array`, a row for each of its rows."""
    return array.reshape(len(array), math.prod(array.shape[1:])).view(dtype)
