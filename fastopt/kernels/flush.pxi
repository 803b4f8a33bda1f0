# Subnormals to zero for the length of a step: the mode of a thread, and its restoring.

cdef extern from *:
    """
    #if defined(__SSE2__) || defined(_M_X64)
      #include <xmmintrin.h>
      typedef unsigned int fastopt_mode;
      static fastopt_mode fastopt_flush_on(void) {
        fastopt_mode mode = _mm_getcsr();
        _mm_setcsr(mode | 0x8040);                     /* flush to zero, denormals are zero */
        return mode;
      }
      static void fastopt_flush_restore(fastopt_mode mode) {
        /* keep the exception flags that the step raised: only the two switches go back */
        _mm_setcsr((_mm_getcsr() & ~0x8040u) | (mode & 0x8040u));
      }
    #elif defined(__aarch64__)
      typedef unsigned long long fastopt_mode;
      static fastopt_mode fastopt_flush_on(void) {
        fastopt_mode mode;
        __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
        __asm__ volatile("msr fpcr, %0" : : "r"(mode | (1ULL << 24)));
        return mode;
      }
      static void fastopt_flush_restore(fastopt_mode mode) {
        __asm__ volatile("msr fpcr, %0" : : "r"(mode));
      }
    #else
      typedef int fastopt_mode;
      static fastopt_mode fastopt_flush_on(void) { return 0; }
      static void fastopt_flush_restore(fastopt_mode mode) { (void)mode; }
    #endif
    """
    ctypedef unsigned long long fastopt_mode
    fastopt_mode fastopt_flush_on() noexcept nogil
    void fastopt_flush_restore(fastopt_mode mode) noexcept nogil
