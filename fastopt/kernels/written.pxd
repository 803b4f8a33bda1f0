# What plan.pyx needs of written.pyx.

cimport cython

from .memory cimport Memory

cdef struct Span:
    char *low
    char *high


@cython.final
cdef class Written:
    cdef readonly bint known       # it has been told all spans since they last changed
    cdef Span *spans               # ascending
    cdef Py_ssize_t count
    cdef Span hull[2]              # they lie in these: where the heap is, and where large arrays are
    cdef Span *apart               # by a hash of their address: gradients that were found apart from them
    cdef Py_ssize_t room           # of that, a power of 2
    cdef Memory spans_memory, apart_memory
    cdef int begin(self, Py_ssize_t most) except -1
    cdef void add(self, char *low, Py_ssize_t bytes) noexcept
    cdef int end(self, Py_ssize_t gradients) except -1
    cdef void enclose(self) noexcept
    cdef bint search(self, char *data, Py_ssize_t bytes, Span *found) noexcept

    cdef inline bint apart_from(self, char *data, Py_ssize_t bytes) noexcept:
        """Whether memory that is read lies apart from all spans. What was found so is known by its address."""
        cdef Span *found
        if ((data >= self.hull[0].high or data + bytes <= self.hull[0].low)
                and (data >= self.hull[1].high or data + bytes <= self.hull[1].low)):
            return True
        found = &self.apart[(<size_t>data * <size_t>0x9E3779B97F4A7C15 >> 32) & (self.room - 1)]
        return (found.low == data and found.high >= data + bytes) or self.search(data, bytes, found)
