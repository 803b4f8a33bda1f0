# cython: cdivision=True, infer_types=True, boundscheck=False, wraparound=False
include "elements.pxi"
include "rules.pxi"
include "loops.pxi"
include "stages.pxi"
include "factored.pxi"
