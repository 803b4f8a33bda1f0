# What other modules need of memory.pyx.

cdef class Memory:
    cdef void *at
    cdef size_t bytes
    cdef void *grow(self, size_t bytes) except NULL
