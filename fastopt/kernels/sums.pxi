# How sums over large arrays are made, for all that make some: by blocks, and joined in turn.

cdef enum:
    BLOCK = 2048          # elements: the block's rows and the scratch stay in a 48 KB L1
    HOLD_GIL = 32768      # work on fewer elements ends sooner than a GIL hand-over pays


cdef inline double joined(double a, double b, bint largest) noexcept nogil:
    """Their sum, or the larger of them: NaN if one is."""
    if not largest:
        return a + b
    return a if a != a or a > b else b
