"""Benchmarks: every method beside its contenders, over the same arrays, interleaved in one process.

`fastopt bench` (or `python -m fastopt.bench`) prints the tables; `fastopt bench muon` measures another race.

- `race`: what a race is: rows, cases and contenders;
- `runner`: the measurement, round by round, and what came of it;
- `cases`, `limit`: how many arrays of how many elements; passes at the speed of the memory;
- `steps`, `stages`, `averages`, `adafactor`, `muon`, `lbfgs`, `sparse`, `schedulers`: the races;
- `numpy_in_place`, `numba_loops`: the methods as a user of NumPy or Numba writes them;
- `targets`, `speed`: what fastopt promises; every method beside torch;
- `checkpoint`, `errors`, `threads_in_loop`: files, rounding, and threads beside a BLAS.
"""
