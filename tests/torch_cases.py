"""The trajectories that are compared with torch.optim, and the recording of them.

`python tests/torch_cases.py` writes `tests/data/torch.npz` with the torch that is installed (2.13.0). Machines
without torch compare with the recording; CI compares with the real one.
"""

from pathlib import Path

import numpy as np
from common import CASES, copies, inputs, torch_knows

RECORDING = Path(__file__).parent / "data" / "torch.npz"
STEPS = 100
KNOWN = [(method, options) for method, options in CASES if torch_knows(method, options)]
DTYPES = ("float32", "float64")


def key(method, options, dtype, what):
    return "|".join([method.name, repr(sorted(options.items())), dtype, str(what)])


def problem(dtype):
    """Parameters in two groups, 0-dim and empty ones among them, and gradients that are missing in some steps."""
    params, grads = inputs(STEPS, dtype, seed=5)
    return params, grads


def arguments(params, options):
    """Two groups, and what torch takes for all groups only."""
    everywhere = {name: value for name, value in options.items() if name == "initial_accumulator_value"}
    rest = {name: value for name, value in options.items() if name not in everywhere}
    return dict(params=[{"params": params[:2], "lr": 0.02}, {"params": params[2:], **rest}], lr=0.01, **everywhere)


def with_torch(method, options, dtype, **how):
    """The parameters after STEPS steps of torch.optim."""
    import torch

    params, grads = problem(dtype)
    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    optimizer = getattr(torch.optim, method.name)(**arguments(tensors, options), **how)
    for row in grads:
        for tensor, grad in zip(tensors, row, strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad)
        optimizer.step()
    return [tensor.detach().numpy() for tensor in tensors]


def with_fastopt(method, options, dtype):
    params, grads = problem(dtype)
    optimizer = method.optimizer(**arguments(params, options))
    for row in grads:
        optimizer.step(row)
    return params


def record():
    import torch

    assert torch.__version__.split("+")[0] == "2.13.0", torch.__version__
    arrays = {}
    for method, options in KNOWN:
        for dtype in DTYPES:
            for i, array in enumerate(copies(with_torch(method, options, dtype, foreach=False))):
                arrays[key(method, options, dtype, i)] = array
    RECORDING.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDING, **arrays)


if __name__ == "__main__":
    record()
