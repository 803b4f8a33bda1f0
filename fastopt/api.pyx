# cython: cdivision=True
"""The rules for Cython and C callers: see api.pxd and include/fastopt.h."""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.string cimport strcmp

from .kernels.rules cimport FORMS, KINDS, UPDATE

from .kernels import rules, simd

cdef enum:
    ROOM = 64

cdef const char *names[ROOM]
cdef int count = 0
cdef void **loops = <void**>PyCapsule_GetPointer(simd.table(simd.level()).RULES, "fastopt.rule")

cdef list kept = []  # the strings that `names` points to


cdef enter(bytes name):
    global count
    kept.append(name)
    names[count] = name
    count += 1


for _rule in rules.TABLE:
    if count < ROOM:
        enter(_rule.encode())


cdef fastopt_rule find_rule(const char *name, int itemsize, int forms) noexcept nogil:
    cdef int i
    if (itemsize != 4 and itemsize != 8) or not 0 <= forms < FORMS * UPDATE:
        return NULL
    for i in range(count):
        if strcmp(names[i], name) == 0:
            return <fastopt_rule>loops[((i * 2 + (itemsize == 8)) * FORMS + forms // UPDATE) * KINDS + forms % UPDATE]
    return NULL
