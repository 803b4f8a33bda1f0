# cython: cdivision=True, boundscheck=False, wraparound=False
"""Written: the memory that a step writes, and whether a gradient lies in it."""

from libc.stdlib cimport qsort
from libc.string cimport memset

cdef enum:
    GRANULE = 4        # a shift: what malloc returns begins at a multiple of 16
    BITS = 64          # of the map for each span: few of what lies between spans looks as if it touched one
    MOST_BITS = 1 << 23


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef const Span *first = <const Span*>a
    cdef const Span *second = <const Span*>b
    return (first.low > second.low) - (first.low < second.low)


cdef class Written:
    """Spans of memory, told between begin() and end().

    A map has a bit for each granule of the memory around them: who reaches into none with a bit is apart.
    """

    def __cinit__(self):
        self.spans_memory, self.map_memory = Memory(), Memory()

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

    cdef int end(self) except -1:
        """Sorts the spans and draws the map."""
        cdef Py_ssize_t bits = min(max(BITS * self.count, 4096), MOST_BITS), k
        cdef size_t words[2]
        cdef Hull *hull
        qsort(self.spans, self.count, sizeof(Span), by_address)
        self.enclose()
        for k in range(2):
            hull = &self.hull[k]
            hull.shift = GRANULE
            while (hull.high - hull.low) >> hull.shift > bits:
                hull.shift += 1
            words[k] = (((hull.high - hull.low) >> hull.shift) >> 6) + 1
        self.hull[0].map = <uint64_t*>self.map_memory.grow((words[0] + words[1]) * sizeof(uint64_t))
        self.hull[1].map = self.hull[0].map + words[0]
        memset(self.hull[0].map, 0, (words[0] + words[1]) * sizeof(uint64_t))
        for k in range(self.count):
            draw(&self.hull[self.spans[k].low >= self.hull[0].high], &self.spans[k])
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

    cdef bint search(self, char *data, Py_ssize_t bytes) noexcept:
        """Whether memory is apart from all spans, found among them."""
        cdef Py_ssize_t low = 0, high = self.count, middle
        while low < high:  # the first span that ends behind the beginning
            middle = (low + high) // 2
            if self.spans[middle].high > data:
                high = middle
            else:
                low = middle + 1
        return low == self.count or self.spans[low].low >= data + bytes or bytes == 0


cdef void draw(const Hull *hull, const Span *span) noexcept:
    """Sets the bits of the granules that a span reaches into."""
    cdef size_t first = (span.low - hull.low) >> hull.shift, last = (span.high - hull.low - 1) >> hull.shift
    while first <= last:
        hull.map[first >> 6] |= (<uint64_t>1) << (first & 63)
        first += 1
