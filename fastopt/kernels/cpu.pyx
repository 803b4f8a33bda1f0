"""The instruction sets of this CPU and its operating system."""

cdef extern from *:
    """
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
      #define FASTOPT_X86 1
      static int fastopt_v2(void) { __builtin_cpu_init(); return __builtin_cpu_supports("sse4.2"); }
      static int fastopt_v3(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
      }
      static int fastopt_v4(void) {
        __builtin_cpu_init();
        return fastopt_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
      }
    #elif defined(_M_X64)
      #include <intrin.h>
      #define FASTOPT_X86 1
      static int fastopt_leaf7(int mask, unsigned long long state) {
        int r[4];
        __cpuid(r, 1);
        if (!(r[2] & (1 << 27)) || !(r[2] & (1 << 12)) || (_xgetbv(0) & state) != state) return 0;  /* xgetbv, FMA */
        __cpuidex(r, 7, 0);
        return (r[1] & mask) == mask;
      }
      static int fastopt_v2(void) { int r[4]; __cpuid(r, 1); return (r[2] >> 20) & 1; }
      static int fastopt_v3(void) { return fastopt_leaf7(1 << 5, 0x6); }
      static int fastopt_v4(void) { return fastopt_leaf7((int)0xC0030000u, 0xE6); }
    #else
      #define FASTOPT_X86 0
      static int fastopt_v2(void) { return 0; }
      static int fastopt_v3(void) { return 0; }
      static int fastopt_v4(void) { return 0; }
    #endif
    #if defined(__clang__)
      #define FASTOPT_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
      #define FASTOPT_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
      #define FASTOPT_COMPILER "msvc"
    #else
      #define FASTOPT_COMPILER "unknown"
    #endif
    """
    int FASTOPT_X86
    const char *FASTOPT_COMPILER
    int fastopt_v2()
    int fastopt_v3()
    int fastopt_v4()

COMPILER = FASTOPT_COMPILER.decode()
IS_X86 = bool(FASTOPT_X86)


def supports(str level not None):
    """Whether this CPU can run the rules compiled for `level`."""
    if level == "base":
        return not FASTOPT_X86
    if level == "v2":
        return bool(fastopt_v2())
    if level == "v3":
        return bool(fastopt_v3())
    return level == "v4" and bool(fastopt_v4())
