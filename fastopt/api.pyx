"""The rules for Cython and C callers: see api.pxd and include/fastopt.h."""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.string cimport strcmp

from .kernels import simd

cdef enum:
    ROOM = 64

cdef struct Entry:
    const char *name
    fastopt_rule rule[2]

cdef Entry entries[ROOM]
cdef int count = 0

cdef list kept = []  # the strings that `entries` points to


cdef enter(bytes name, rules):
    global count
    kept.append(name)
    entries[count].name = name
    entries[count].rule[0] = <fastopt_rule>PyCapsule_GetPointer(rules[0], "fastopt.rule")
    entries[count].rule[1] = <fastopt_rule>PyCapsule_GetPointer(rules[1], "fastopt.rule")
    count += 1


for _name, _rules in simd.table(simd.level()).RULES.items():
    if count < ROOM:
        enter(_name.encode(), _rules)


cdef fastopt_rule find_rule(const char *name, int itemsize) noexcept nogil:
    cdef int i
    if itemsize != 4 and itemsize != 8:
        return NULL
    for i in range(count):
        if strcmp(entries[i].name, name) == 0:
            return entries[i].rule[itemsize == 8]
    return NULL
