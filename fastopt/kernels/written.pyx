# cython: cdivision=True, boundscheck=False, wraparound=False
"""Written: the memory that a step writes, and whether a gradient lies in it."""

from libc.stdlib cimport qsort
from libc.string cimport memset

cdef enum:
    MOST_APART = 1 << 20  # gradients whose address is remembered, at most


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef const Span *first = <const Span*>a
    cdef const Span *second = <const Span*>b
    return (first.low > second.low) - (first.low < second.low)


cdef class Written:
    """Spans of memory, told between begin() and end(), and what was found apart from them."""

    def __cinit__(self):
        self.spans_memory, self.apart_memory = Memory(), Memory()

    cdef int begin(self, Py_ssize_t most) except -1:
        """Forgets all; at most so many spans will be added."""
        self.known = False
        self.count = 0
        self.spans = <Span*>self.spans_memory.grow(most * sizeof(Span))
        return 0

    cdef void add(self, char *low, Py_ssize_t bytes) noexcept:
        """Adds a span, unless it is empty."""
        if low != NULL and bytes != 0:
            self.spans[self.count].low, self.spans[self.count].high = low, low + bytes
            self.count += 1

    cdef int end(self, Py_ssize_t gradients) except -1:
        """Sorts the spans, and makes room for what will be found about so many gradients."""
        qsort(self.spans, self.count, sizeof(Span), by_address)
        self.enclose()
        self.room = 64
        while self.room < 8 * gradients and self.room < MOST_APART:
            self.room *= 2
        self.apart = <Span*>self.apart_memory.grow(self.room * sizeof(Span))
        memset(self.apart, 0, self.room * sizeof(Span))
        self.known = True
        return 0

    cdef void enclose(self) noexcept:
        """Sets the hull: all spans but for the widest gap between them."""
        cdef Py_ssize_t k, cut = 0
        cdef size_t gap, widest = 0
        memset(self.hull, 0, sizeof(self.hull))
        if self.count == 0:
            return
        for k in range(1, self.count):
            if self.spans[k].low > self.spans[k - 1].high:
                gap = self.spans[k].low - self.spans[k - 1].high
                if gap > widest:
                    widest, cut = gap, k
        self.hull[0].low, self.hull[0].high = self.spans[0].low, self.spans[self.count - 1].high
        if cut:
            self.hull[1].low, self.hull[1].high = self.spans[cut].low, self.hull[0].high
            self.hull[0].high = self.spans[cut - 1].high

    cdef bint search(self, char *data, Py_ssize_t bytes, Span *found) noexcept:
        cdef Py_ssize_t low = 0, high = self.count, middle
        while low < high:  # the first span that ends behind the beginning
            middle = (low + high) // 2
            if self.spans[middle].high > data:
                high = middle
            else:
                low = middle + 1
        if low < self.count and self.spans[low].low < data + bytes and bytes:
            return False
        found.low, found.high = data, data + bytes
        return True
