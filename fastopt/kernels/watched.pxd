# What plan.pyx needs of watched.pyx.

cdef class Watched:
    cdef readonly list containers
    cdef readonly list contents
    cdef bint same(self) except -1


cdef class Settled:
    cdef public dict options
    cdef public list seen
    cdef public object settings
    cdef public tuple prepare
    cdef public object coefficients
    cdef public tuple later
    cdef object answer(self, long long step)
