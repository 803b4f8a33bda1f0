# What plan.pyx needs of hold.pyx.

cdef class Hold:
    cdef size_t owner       # the thread that has it; 0: none
    cdef long generation    # of the process in which it was taken
    cdef readonly long long turns  # how often it was taken
    cdef int acquire(self) except -1
    cdef int give(self) except -1
