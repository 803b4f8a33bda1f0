# Every NaN becomes one, that which this CPU makes for an invalid operation: then it does not matter which survives.

cdef extern from *:
    """
    #if defined(__SSE2__) || defined(_M_X64)
      #define FASTOPT_NAN (-__builtin_nanf(""))
    #else
      #define FASTOPT_NAN (__builtin_nanf(""))
    #endif
    static inline float fastopt_clean32(float x) { return x == x ? x : FASTOPT_NAN; }
    static inline double fastopt_clean64(double x) { return x == x ? x : (double)FASTOPT_NAN; }
    """
    float clean32 "fastopt_clean32"(float) noexcept nogil
    double clean64 "fastopt_clean64"(double) noexcept nogil
