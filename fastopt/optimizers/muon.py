"""Muon."""

from math import inf, log, prod, sqrt

import numpy as np

from ..checks import flag, nonnegative, numbers, one_of, whole_number
from ..kernels.arrays import aligned
from ..norms import norm_of, times
from .base import Params, Rate
from .whole import WholeOptimizer

CHUNK = 32_768  # elements: what the elementwise parts need for them stays in the second level of cache
PADDING = 16  # elements after each row of a square: rows of a power of two fall into the same few sets of a cache
SYMMETRIC = 128  # rows: from here on the product that knows its result as symmetric (syrk) is the faster one


class Muon(WholeOptimizer):
    r"""Muon: momentum, orthogonalized, so that every direction of a matrix moves at the same rate.

    With gradient g, an m × n matrix, and learning rate η::

        B = μ B + (1-μ) g
        U = (1-μ) g + μ B                  (without nesterov: U = B)
        X = U / max(‖U‖, ε)                (Frobenius norm)
        X = a X + b X Xᵀ X + c (X Xᵀ)² X   (k times: Newton–Schulz; singular values go to about 1)
        θ = θ - η λ θ - η r X,   r = √max(1, m/n)

    Args:
        params: see `Optimizer`; matrices only. `MuonAdamW` takes all parameters of a model and steps the rest
            with AdamW. Embeddings and the last layer are better there too.
        lr: learning rate η, at least 0.
        weight_decay: λ, at least 0; each step subtracts η λ θ, whatever the gradient.
        momentum: μ, at least 0.
        nesterov: orthogonalizes the momentum of one more step.
        ns_coefficients: (a, b, c) of the Newton–Schulz iteration.
        eps: ε, at least 0.
        ns_steps: k, a whole number from 1 to 99.
        adjust_lr_fn: `"original"` or None: r as above. `"match_rms_adamw"`: r = 0.2 √max(m, n), which moves the
            elements about as far as AdamW does, so that its learning rates and weight decays can be used.

    Raises:
        TypeError, ValueError: an argument is not as described, a parameter is not a matrix; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.zeros((2, 3))
    >>> opt = fastopt.Muon([w], lr=0.1)
    >>> opt.step([np.array([[3.0, 0.0, 0.0], [0.0, 0.0, -2.0]])])
    >>> np.linalg.svd(w, compute_uv=False).round(3)
    array([0.112, 0.068])

    The products run in NumPy's BLAS and on its threads, which `num_threads` does not set; the bits depend on that BLAS,
    and may differ from one machine to the next. After the first, a step allocates nothing; the optimizer holds working
    memory for its largest matrix: two copies, and two squares of the shorter side, four where the longer one is more
    than twice as long.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982. Departs from
    torch, which iterates in bfloat16: here the dtype of the parameter holds throughout. The weight decay is added
    to the update before the one rounding of θ, so that it does not vanish in float32 when η λ is tiny.
    """

    state_slots = ("momentum_buffer",)
    counts_steps = False
    hyperparameters = {
        "lr": nonnegative,
        "weight_decay": nonnegative,
        "momentum": nonnegative,
        "nesterov": flag,
        "ns_coefficients": numbers(3),
        "eps": nonnegative,
        "ns_steps": whole_number(1, 99),
        "adjust_lr_fn": one_of(None, "original", "match_rms_adamw"),
    }

    def __init__(self, params: Params, lr: Rate = 1e-3, weight_decay: Rate = 0.1, momentum: Rate = 0.95,
                 nesterov: bool = True, ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
                 eps: Rate = 1e-7, ns_steps: int = 5, adjust_lr_fn: str | None = None) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov,
                                      ns_coefficients=ns_coefficients, eps=eps, ns_steps=ns_steps,
                                      adjust_lr_fn=adjust_lr_fn))

    @classmethod
    def check_parameter(cls, param, label):
        if param.ndim != 2:
            raise ValueError(f"{label} must be a matrix, got shape {param.shape}; MuonAdamW steps other shapes too")

    @staticmethod
    def slots(settings):
        return {"momentum_buffer": 0.0}

    @classmethod
    def new_work(cls, level):
        return Workspaces()

    @classmethod
    def prepare(cls, work, param):
        work.of(param)

    @classmethod
    def update(cls, work, param, grad, state, settings, step):
        if param.size == 0:
            return
        lr, (a, b, c) = settings["lr"], settings["ns_coefficients"]
        rows, columns = param.shape
        original = settings["adjust_lr_fn"] != "match_rms_adamw"
        ratio = sqrt(max(1.0, rows / columns)) if original else 0.2 * sqrt(max(rows, columns))
        work = work.of(param)
        norm = momentum(work.flat, work.spare, grad.reshape(-1), state["momentum_buffer"].reshape(-1),
                        settings["momentum"], settings["nesterov"])
        scale = square_scale(a, b, c)
        if norm:  # else X is zero, whatever ε
            times(work.flat, (scale or 1.0) / max(norm, settings["eps"]), work.flat)
        update = work.orthogonalize(a, b, c, settings["ns_steps"], scale is not None)
        descend(param.reshape(-1), update, work.spare, lr * settings["weight_decay"], lr * ratio / (scale or 1.0))


def momentum(out, spare, grad, buffer, mu, nesterov):
    """Updates the momentum, writes what is to be orthogonalized to `out` and returns its norm."""
    squares = 0.0
    for start in range(0, len(out), CHUNK):
        part = slice(start, start + CHUNK)
        u, b = out[part], buffer[part]
        fresh = spare[:len(u)]
        fresh[...] = grad[part]  # in the dtype of the parameter
        fresh *= 1.0 - mu
        b *= mu
        b += fresh
        if nesterov:
            np.multiply(b, mu, out=u)
            u += fresh
        else:
            u[...] = b
        squares += float(np.dot(u, u))
    limits = np.finfo(out.dtype)
    if float(limits.tiny / limits.eps) <= squares < inf or squares != squares:
        return sqrt(squares)
    return norm_of([out], 2.0)  # dot products leave the range of the dtype


def descend(param, update, spare, decay, rate):
    """θ -= decay θ + rate X. Overwrites X."""
    for start in range(0, len(param), CHUNK):
        p, x = param[start : start + CHUNK], update[start : start + CHUNK]
        x *= rate
        if decay:
            x += np.multiply(p, decay, out=spare[:len(p)])
        p -= x


def square_scale(a, b, c):
    """The scale of X at which `Workspace.polynomial` completes the square; None where that would cancel."""
    return c**0.25 if c > 0 and b * b <= 64 * c * max(1.0, abs(a)) else None


class Square:
    """A square matrix with padded rows, and views of it; `twin` gives its own square in the faster product."""

    def __init__(self, memory, n):
        self.padded = memory  # its rows and what is between them, in one piece
        self.matrix = memory.reshape(n, n + PADDING)[:, :n]
        self.twin = self.matrix.T if n >= SYMMETRIC else self.matrix
        self.diagonal = memory[:: n + PADDING + 1]


class Workspaces:
    """The working memory of each shape of parameter: all use the same bytes."""

    def __init__(self):
        self.memory = aligned((0,), np.uint8)
        self.found = {}

    def of(self, param):
        """The `Workspace` for a parameter."""
        shape, dtype = param.shape, param.dtype
        found = self.found.get((shape, dtype))
        if found is None:
            size = Workspace.size(shape, dtype)
            if size > len(self.memory):
                self.memory = aligned((size,), np.uint8)
                self.found.clear()
            found = self.found[shape, dtype] = Workspace(self.memory, shape, dtype)
        return found


class Workspace:
    """The working memory of a step of one shape, and the Newton–Schulz iteration in it.

    X and its successors are `x` and `y` in turn, transposed where that makes them wide, so that X Xᵀ is the
    smaller of the two squares. `squares` has that size.
    """

    @staticmethod
    def parts(shape):
        """Elements: two of X, four squares (two where X is not wide) and a chunk."""
        short = min(shape)
        return [prod(shape)] * 2 + [short * (short + PADDING)] * (4 if is_wide(shape) else 2) + [short, CHUNK]

    @classmethod
    def size(cls, shape, dtype):
        """Bytes, each part from a cache line of its own."""
        return sum(rounded(count * dtype.itemsize) for count in cls.parts(shape))

    def __init__(self, memory, shape, dtype):
        arrays, start = [], 0
        for count in self.parts(shape):
            size = count * dtype.itemsize
            arrays.append(memory[start : start + size].view(dtype))
            start += rounded(size)
        self.flat, self.other, *squares, self.kept, self.spare = arrays
        x, y = self.flat.reshape(shape), self.other.reshape(shape)
        self.x, self.y = (x, y) if shape[0] <= shape[1] else (x.T, y.T)
        short = min(shape)
        self.squares = [Square(square, short) for square in squares]
        self.epsilon, self.wide = float(np.finfo(dtype).eps), is_wide(shape)

    def orthogonalize(self, a, b, c, steps, complete):
        """Iterates from `flat`; returns the result, flat.

        X' = P(X Xᵀ) X with P(A) = a I + b A + c A², so that X' X'ᵀ = P A P. Where X is wide, the iteration
        therefore stays among the small squares and multiplies X by the product of its polynomials at the end. What
        rounding adds to the smallest eigenvalues of A grows by a² with each step, and X Xᵀ is computed anew before
        it matters.
        """
        x, y, flat, other = self.x, self.y, self.flat, self.other
        run = 1
        if self.wide:
            run = steps if abs(a) <= 1 else 1 + int(log(0.01 / self.epsilon) / log(a * a))
        while steps:
            steps, now = steps - min(run, steps), min(run, steps)
            np.matmul(x, x.T, out=self.squares[0].matrix)
            np.matmul(self.product(a, b, c, now, complete).matrix, x, out=y)
            x, y, flat, other = y, x, other, flat
        return flat

    def product(self, a, b, c, steps, complete):
        """The product of the polynomials of `steps` steps from A = X Xᵀ, which is in the first square."""
        gram, p, *free = self.squares
        self.polynomial(gram, p, a, b, c, complete)
        q = p
        for _ in range(steps - 1):
            t = free.pop()
            np.matmul(p.matrix, gram.matrix, out=t.matrix)
            np.matmul(t.matrix, p.matrix, out=gram.matrix)
            self.polynomial(gram, t, a, b, c, complete)
            if q is not p:
                free.append(p)
            s = free.pop()
            np.matmul(t.matrix, q.matrix, out=s.matrix)
            free.append(q)
            p, q = t, s
        return q

    def polynomial(self, gram, out, a, b, c, complete):
        """out = a I + b A + c A², for the symmetric A in `gram`: one product.

        With `complete`, `gram` is √c A instead, and c A² + b A = (√c A + b/(2√c) I)² - b²/(4c) I costs no pass.
        """
        if complete:
            self.kept[:] = gram.diagonal
            gram.diagonal += b / (2 * sqrt(c))
            np.matmul(gram.matrix, gram.twin, out=out.matrix)
            gram.diagonal[:] = self.kept
            out.diagonal += a - b * b / (4 * c)
            return
        np.matmul(gram.matrix, gram.twin, out=out.matrix)
        out.padded *= c / b if b else c
        if b:
            out.padded += gram.padded
            out.padded *= b
        out.diagonal += a


def is_wide(shape):
    """Whether the iteration among squares takes less arithmetic."""
    return max(shape) > 2 * min(shape)


def rounded(size):
    return -(-size // 64) * 64
