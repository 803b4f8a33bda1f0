"""Benchmarks: every method against its rivals, over the same arrays, interleaved in one process.

`fastopt bench` (or `python -m fastopt.bench`) prints the tables:

- `rivals`: the ways to make a step: fastopt's doors, NumPy, torch.optim, and the memory's own limit;
- `cases`: how many arrays of how many elements;
- `runner`: the measurement, round by round, and what came of it;
- `targets`: what fastopt promises, measured;
- `threads_in_loop`: what threads cost or bring inside a training loop with a BLAS;
- `adafactor`, `averages`, `checkpoint`, `lbfgs`, `muon`, `sparse`, `stages`: what needs a race of its own
  (`python -m fastopt.bench.muon`).
"""
