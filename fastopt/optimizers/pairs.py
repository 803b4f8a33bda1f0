"""The curvature pairs of L-BFGS: what the last steps told about the Hessian."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import whole
from .state import fitted

COLUMNS = 65536  # elements whose products are summed in the vectors' own precision; these sums are added in double
CHANGE = 0.1  # a change of the gradient of less than this share of it is multiplied anew


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product of two vectors."""
    return float(sum(float(np.dot(a[at : at + COLUMNS], b[at : at + COLUMNS])) for at in range(0, len(a), COLUMNS)))


class Pairs:
    """The last `size` pairs of a step s and the change y of the gradient over it, with their inner products.

    The two-loop recursion (Nocedal and Wright, algorithm 7.4) multiplies each vector of the history twice with a
    vector that changes in between. Here it runs over inner products, in the compact form of Byrd, Nocedal and
    Schnabel 1994. With R the upper triangle of SᵀY, D its diagonal, g the gradient and γ the scale of the first
    Hessian, al and be are those of the two loops::

        R al = -Sᵀg
        Rᵀ (al - be) = D al - γ (-Yᵀg - YᵀY al)
        d = -γ g + S (al - be) - γ Y al

    so that all vectors are read in two matrix-vector products: [S Y]ᵀg, and the last line. The new column of SᵀY
    and YᵀY is the change of [S Y]ᵀg since the last gradient; where the gradient changed little, so that the
    difference would cancel, y is multiplied itself.

    `rows` is a ring: slot i has s in row 2i and y in row 2i + 1. It is taken whole at the start, but a system gives
    memory only to the rows that are written.
    """

    def __init__(self, size: int, length: int, dtype: Any) -> None:
        self.size, self.count, self.next = size, 0, 0
        self.rows = np.empty((2 * size, length), dtype)
        self.sy, self.yy = np.zeros((size, size)), np.zeros((size, size))
        self.past: np.ndarray | None = None  # the products of all rows with the last gradient
        self.scale = 1.0  # γ
        self.overwritten: list[tuple[int, np.ndarray]] = []  # since the last mark

    # ---- the pairs

    def order(self) -> np.ndarray:
        """The slots from the oldest pair to the newest."""
        return (np.arange(self.count) + self.next - self.count) % self.size

    def steps(self) -> list[np.ndarray]:
        """Every s, the oldest first."""
        return [self.rows[2 * slot] for slot in self.order()]

    def changes(self) -> list[np.ndarray]:
        """Every y, the oldest first."""
        return [self.rows[2 * slot + 1] for slot in self.order()]

    def curvatures(self) -> list[float]:
        """Every sᵀy, the oldest first."""
        return [float(self.sy[slot, slot]) for slot in self.order()]

    def _slot(self) -> int:
        """A place for a new pair: the oldest goes when all are taken."""
        slot = self.next
        if self.count == self.size:
            self.overwritten.append((slot, self.rows[2 * slot : 2 * slot + 2].copy()))
        self.count, self.next = min(self.count + 1, self.size), (slot + 1) % self.size
        return slot

    @np.errstate(all="ignore")
    def add(self, direction: np.ndarray, t: float, change: np.ndarray, curvature: float, grad: np.ndarray) -> None:
        """Takes the pair s = t · direction, y = change up. `grad` is the gradient after it, curvature is sᵀy."""
        slot = self._slot()
        np.multiply(direction, t, out=self.rows[2 * slot])
        self.rows[2 * slot + 1] = change
        square, size = dot(change, change), dot(grad, grad)
        now = self.dots(grad)
        if self.past is not None and len(self.past) < len(now):
            self.past = np.append(self.past, (0.0, 0.0))  # the new pair's are not used
        if self.past is None or not square >= CHANGE * CHANGE * size:
            products = self.dots(change)
        else:
            products = now - self.past
        self.past = now
        self.sy[: self.count, slot] = products[::2]
        self.yy[: self.count, slot] = self.yy[slot, : self.count] = products[1::2]
        self.sy[slot, slot], self.yy[slot, slot] = curvature, square
        self.scale = float(np.float64(curvature) / square)

    def skip(self, grad: np.ndarray) -> None:
        """Goes on to the next gradient without a pair."""
        self.past = self.dots(grad)

    # ---- products

    def dots(self, vector: np.ndarray) -> np.ndarray:
        """The inner products of all rows with a vector."""
        rows = self.rows[: 2 * self.count]
        total = np.zeros(len(rows))
        for at in range(0, len(vector), COLUMNS):
            total += rows[:, at : at + COLUMNS] @ vector[at : at + COLUMNS]
        return total

    @np.errstate(all="ignore")
    def direction(self, grad: np.ndarray, out: np.ndarray, work: np.ndarray) -> np.ndarray:
        """Writes the direction at the gradient that `add` or `skip` was given to `out`; returns al."""
        np.multiply(grad, -self.scale, out=out)
        if not self.count:
            return np.zeros(0)
        order, past = self.order(), self.past
        assert past is not None
        r = np.triu(self.sy[np.ix_(order, order)])
        al = np.linalg.solve(r, -past[2 * order])
        v = -self.scale * (past[2 * order + 1] + self.yy[np.ix_(order, order)] @ al)
        # backwards the triangle is again an upper one, which the solver takes as it is, without exchanging rows
        shares = np.linalg.solve(r.T[::-1, ::-1], (r.diagonal() * al - v)[::-1])[::-1]
        weights = np.empty(2 * self.count, self.rows.dtype)
        weights[2 * order], weights[2 * order + 1] = shares, -self.scale * al
        out += np.dot(weights, self.rows[: 2 * self.count], out=work)
        return al

    # ---- going back

    def mark(self) -> dict[str, Any]:
        """What `restore` needs; it serves until the next mark."""
        self.forget_mark()
        return {"count": self.count, "next": self.next, "past": self.past, "scale": self.scale,
                "sy": self.sy.copy(), "yy": self.yy.copy()}

    def restore(self, mark: dict[str, Any]) -> None:
        """Makes all pairs what they were at the mark."""
        for slot, rows in reversed(self.overwritten):
            self.rows[2 * slot : 2 * slot + 2] = rows
        self.forget_mark()
        self.__dict__.update(mark)

    def forget_mark(self) -> None:
        """Gives back the memory that a return to the mark needs."""
        self.overwritten = []

    # ---- copies

    def products(self) -> dict[str, Any]:
        """What `take` needs to go on with the same bits: sums that were made in another order than `of` does."""
        k = self.count
        return {"next": self.next, "sy": self.sy[:k, :k].copy(), "yy": self.yy[:k, :k].copy(), "past": self.past}

    def take(self, products: Any) -> None:
        """Takes the products of the same pairs. Raises TypeError or ValueError if they are not of these."""
        names, k = ("next", "sy", "yy", "past"), self.count
        if not isinstance(products, Mapping) or set(products) != set(names):
            raise ValueError(f"products must be a dict of {names}")
        start = whole("next", products["next"])
        if not (start < self.size if k == self.size else start == k):
            raise ValueError(f"next must be the slot after the newest pair, got {start}")
        sy, yy = (fitted(products[name], self.sy[:k, :k], name, "products") for name in ("sy", "yy"))
        past = products["past"]
        if past is not None:
            past = fitted(past, np.empty(2 * k), "past", "products")
        if k == self.size:
            self.rows = np.roll(self.rows, 2 * start, axis=0)
        self.next, self.past = start, past
        self.sy[:k, :k], self.yy[:k, :k] = sy, yy

    @classmethod
    def of(cls, size: int, steps: list, changes: list, length: int, dtype: Any, scale: float) -> "Pairs":
        """Pairs from lists of vectors, the oldest first; the newest `size` of them."""
        pairs = cls(size, length, dtype)
        for s, y in zip(steps[-size:], changes[-size:], strict=True):
            slot = pairs._slot()
            pairs.rows[2 * slot], pairs.rows[2 * slot + 1] = s, y
        pairs.scale = scale
        s, y = pairs.rows[: 2 * pairs.count : 2], pairs.rows[1 : 2 * pairs.count : 2]
        k = pairs.count
        for at in range(0, length, COLUMNS):
            columns = slice(at, at + COLUMNS)
            pairs.sy[:k, :k] += s[:, columns] @ y[:, columns].T
            pairs.yy[:k, :k] += y[:, columns] @ y[:, columns].T
        return pairs

    def __getstate__(self):
        return {**self.__dict__, "rows": self.rows[: 2 * self.count], "overwritten": []}

    def __setstate__(self, saved):
        self.__dict__.update(saved)
        rows = saved["rows"]
        self.rows = np.empty((2 * self.size, rows.shape[1]), rows.dtype)
        self.rows[: len(rows)] = rows
