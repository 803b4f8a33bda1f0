# cython: cdivision=True, infer_types=True, boundscheck=False, wraparound=False
include "rules.pxi"
include "factored.pxi"
