# For Cython and C only: see api.pxd and include/fastopt.h.
