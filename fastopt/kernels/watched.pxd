# What plan.pyx needs of watched.pyx.

cdef class Watched:
    cdef readonly list containers
    cdef readonly list contents
    cdef bint same(self) except -1
