# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""XXH64, a checksum as fast as memory; github.com/Cyan4973/xxHash has its specification."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define P1 0x9E3779B185EBCA87ULL
    #define P2 0xC2B2AE3D27D4EB4FULL
    #define P3 0x165667B19E3779F9ULL
    #define P4 0x85EBCA77C2B2AE63ULL
    #define P5 0x27D4EB2F165667C5ULL
    """
    const uint64_t P1, P2, P3, P4, P5


cdef inline uint64_t turned(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline uint64_t word(const uint8_t *at) noexcept nogil:
    cdef uint64_t x
    memcpy(&x, at, 8)
    return x


cdef inline uint64_t mixed(uint64_t lane, uint64_t x) noexcept nogil:
    return turned(lane + x * P2, 31) * P1


cdef uint64_t hashed(const uint8_t *p, size_t n, uint64_t seed) noexcept nogil:
    cdef uint64_t h, a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1
    cdef size_t left = n
    cdef uint32_t half
    if n >= 32:
        while left >= 32:
            a, b = mixed(a, word(p)), mixed(b, word(p + 8))
            c, d = mixed(c, word(p + 16)), mixed(d, word(p + 24))
            p += 32
            left -= 32
        h = turned(a, 1) + turned(b, 7) + turned(c, 12) + turned(d, 18)
        h = (h ^ mixed(0, a)) * P1 + P4
        h = (h ^ mixed(0, b)) * P1 + P4
        h = (h ^ mixed(0, c)) * P1 + P4
        h = (h ^ mixed(0, d)) * P1 + P4
    else:
        h = seed + P5
    h += n
    while left >= 8:
        h = turned(h ^ mixed(0, word(p)), 27) * P1 + P4
        p += 8
        left -= 8
    if left >= 4:
        memcpy(&half, p, 4)
        h = turned(h ^ (<uint64_t> half * P1), 23) * P2 + P3
        p += 4
        left -= 4
    while left:
        h = turned(h ^ (p[0] * P5), 11) * P1
        p += 1
        left -= 1
    h = (h ^ (h >> 33)) * P2
    h = (h ^ (h >> 29)) * P3
    return h ^ (h >> 32)


def xxh64(const uint8_t[::1] data, uint64_t seed=0):
    """The XXH64 of bytes. Lets other threads run."""
    cdef uint64_t result
    cdef const uint8_t *start = &data[0] if len(data) else NULL
    cdef size_t size = len(data)
    with nogil:
        result = hashed(start, size, seed)
    return result
