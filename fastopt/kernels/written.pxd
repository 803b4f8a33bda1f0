# What plan.pyx needs of written.pyx.

cimport cython
from libc.stdint cimport uint64_t

from .memory cimport Memory


cdef struct Span:
    char *low
    char *high


cdef struct Hull:              # a range in which spans lie
    char *low
    char *high
    int shift                  # of an address, to its granule
    uint64_t *map              # a bit for each granule: whether a span reaches into it


@cython.final
cdef class Written:
    cdef readonly bint known   # it has been told all spans since they last changed
    cdef Span *spans           # ascending
    cdef Py_ssize_t count
    cdef Hull hull[2]          # where the heap is, and where large arrays are
    cdef Memory spans_memory, map_memory
    cdef int begin(self, Py_ssize_t most) except -1
    cdef void add(self, char *low, Py_ssize_t bytes) noexcept
    cdef int end(self) except -1
    cdef void enclose(self) noexcept
    cdef bint search(self, char *data, Py_ssize_t bytes) noexcept

    cdef inline bint apart_from(self, char *data, Py_ssize_t bytes) noexcept:
        """Whether memory that is read lies apart from all spans."""
        return ((blank(&self.hull[0], data, data + bytes) and blank(&self.hull[1], data, data + bytes))
                or self.search(data, bytes))


cdef inline bint blank(const Hull *hull, const char *low, const char *high) noexcept:
    """Whether no span reaches into a granule that these addresses reach into."""
    cdef size_t first, last
    cdef uint64_t found
    if low >= hull.high or high <= hull.low:
        return True
    first = (low - hull.low) >> hull.shift if low > hull.low else 0
    last = ((high if high < hull.high else hull.high) - hull.low - 1) >> hull.shift
    found = hull.map[first >> 6] >> (first & 63) << (first & 63)
    while first >> 6 < last >> 6:
        if found:
            return False
        first += 64
        found = hull.map[first >> 6]
    return found << (63 - (last & 63)) == 0
