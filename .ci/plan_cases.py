"""What .ci/sanitize runs under valgrind: every elementwise method with and without stages, threads and sparse rows."""

import numpy as np

import fastopt
from fastopt.averages import EMA
from fastopt.kernels import threads
from fastopt.table import METHODS

threads.PER_THREAD = 1000
threads.most = lambda: 2
rng = np.random.default_rng(0)
for method in METHODS:
    if not method.elementwise:
        continue
    for dtype, given in (("float32", "float32"), ("float64", "float32")):
        for staged in (False, True):
            params = [rng.standard_normal(size).astype(dtype) for size in (1, 0, 5, 2_049, 4_100)]
            grads = [rng.standard_normal(param.size).astype(given) for param in params]
            if method.optimizer.sparse == "only":
                params, grads = [np.ones((9, 5), dtype)], [fastopt.SparseRows([7, 2], np.ones((2, 5), given), (9, 5))]
                staged = False
            optimizer = method.optimizer(params, **{"lr": 0.01} | method.variants[-1])
            optimizer.num_threads = 2
            if staged:
                optimizer.set_stages(clip=1.0, centralize=True, average=EMA(params), zero_grad=True, statistics=True)
            for _ in range(2):
                optimizer.step(grads)
            assert all(np.isfinite(param).all() for param in params)
print("every case stepped")
