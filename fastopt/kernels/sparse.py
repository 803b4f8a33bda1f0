"""Row-sparse gradients: of an embedding table, where a batch touches few rows."""

from typing import Any

import numpy as np

from .arrays import readable
from .rows import group

__all__ = ["SparseRows"]


class SparseRows:
    """The gradient of a parameter in which only some rows are not zero.

    Args:
        indices: the rows, whole numbers from 0; shape (k,). A row named more than once has the sum of its values.
        values: float32, float64, complex64 or complex128; shape (k, *shape[1:]). Only read, and not copied if
            C-contiguous and in native byte order: leave them alone until the step.
        shape: the shape of the parameter.

    Attributes:
        indices: the rows, each once, ascending; read-only.
        values: a new array with the sum for each of them.

    A `scipy.sparse` matrix (CSR, CSC, COO) serves as a gradient too: its touched rows are those with a stored entry.
    SGD, Adagrad and SparseAdam accept sparse gradients. A step costs what the touched rows cost, not the table,
    and its result has the same bits for any number of threads.

    Raises:
        TypeError, ValueError: an argument is not as described.

    >>> import numpy as np, fastopt
    >>> table = np.zeros((1000, 2), "float32")
    >>> opt = fastopt.SGD(table, lr=1.0)
    >>> opt.step([fastopt.SparseRows([7, 3, 7], np.ones((3, 2), "float32"), table.shape)])
    >>> table[[3, 7]]
    array([[-1., -1.],
           [-2., -2.]], dtype=float32)
    """

    __slots__ = ("indices", "order", "shape", "starts", "stored")

    def __init__(self, indices: Any, values: Any, shape: tuple[int, ...]) -> None:
        rows, values = readable(indices, "indices"), readable(values, "values")
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
        # row indices[k] is the sum of the stored rows order[starts[k] : starts[k + 1]], in this order
        self.indices, self.starts, self.order = group(np.ascontiguousarray(rows, np.int64), shape[0])
        for array in (self.indices, self.starts, self.order):  # a step reads them without another check
            array.setflags(write=False)
        self.stored, self.shape = np.require(values, requirements=["C", "A"]).reshape(values.shape), shape

    @classmethod
    def of(cls, matrix):
        """The rows of a `scipy.sparse` matrix that have a stored entry."""
        entries = matrix.tocoo()
        first, *others = getattr(entries, "coords", None) or (entries.row, entries.col)
        rows, place = np.unique(first, return_inverse=True)
        values = np.zeros((len(rows), *matrix.shape[1:]), entries.data.dtype)
        np.add.at(values, (place, *others), entries.data)
        return cls(rows, values, matrix.shape)

    @property
    def values(self):
        sums = np.zeros((len(self.indices), *self.shape[1:]), self.stored.dtype)
        np.add.at(sums, np.repeat(np.arange(len(self.indices)), np.diff(self.starts)), self.stored[self.order])
        return sums

    def to_dense(self):
        """The gradient as an ordinary array."""
        dense = np.zeros(self.shape, self.stored.dtype)
        dense[self.indices] = self.values
        return dense

    def over(self, rows):
        """The same gradient with zeros for more rows: `rows` ascend and hold all of `indices`."""
        wider = object.__new__(SparseRows)
        wider.indices, wider.order, wider.stored, wider.shape = rows, self.order, self.stored, self.shape
        wider.starts = self.starts[np.searchsorted(self.indices, np.append(rows, self.shape[0]))]
        return wider

    def __repr__(self):
        return f"SparseRows({len(self.indices)} rows of {self.shape}, {self.stored.dtype})"

