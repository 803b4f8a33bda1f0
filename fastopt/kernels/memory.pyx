"""Memory: C memory that goes with the object that owns it."""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memset


@cython.final
cdef class Memory:
    """Memory that grows and never shrinks, zero where nothing was written."""

    def __dealloc__(self):
        PyMem_Free(self.at)

    cdef void *grow(self, size_t bytes) except NULL:
        """Where it lies, with room for `bytes` at least; it may have moved. A MemoryError leaves it as it was."""
        cdef size_t room
        cdef void *memory
        if bytes > self.bytes or self.at == NULL:
            room = max(bytes, 2 * self.bytes, <size_t>64)
            memory = PyMem_Realloc(self.at, room)
            if memory == NULL:
                raise MemoryError()
            memset(<char*>memory + self.bytes, 0, room - self.bytes)
            self.at, self.bytes = memory, room
        return self.at
