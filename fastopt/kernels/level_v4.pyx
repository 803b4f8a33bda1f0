# cython: cdivision=True, infer_types=True, boundscheck=False, wraparound=False
include "rules.pxi"
include "stages.pxi"
include "factored.pxi"
