# The rules by number, and what one needs at a step. Not for users: see fastopt/api.pxd.

cdef enum:
    STATES = 4           # state arrays a rule can have
    COEFFICIENTS = 16    # room for its coefficients, of which two are the loop's:
    DECAY = 14           # what is taken off the parameter beside the update, in a loop that decays,
    SCALE = 15           # and what the gradient is multiplied with, in one that scales
    FORMS = 8            # forms of its own that a rule can have
    KINDS = 6            # loops of each: one that steps, which may be
    SCALED = 1
    DECAYS = 2           # or both; one
    UPDATE = 4           # that writes the update and leaves the parameter alone;
    ADVANCE = 5          # and one that writes the states only

cdef extern from "Python.h":
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc

cdef class Rule:
    cdef readonly str name
    cdef readonly int number
    cdef readonly tuple states, forms, coefficients
    cdef readonly tuple own    # the forms that somebody can ask for, by number: a bit for each of `forms`
    cdef readonly tuple loops  # names of functions
    cdef dict known            # names of a call -> where its values go
    cdef tuple last            # the names of the last call,
    cdef int places[COEFFICIENTS + FORMS]  # and of each where it goes
    cdef tuple texts           # that `method` points to
    cdef PyMethodDef method
    cdef int learn(self, Py_ssize_t values, tuple names) except -1
    cdef int check_form(self, int form) except -1

cdef class Coefficients:
    cdef Rule of
    cdef int rule              # its number
    cdef int form              # a bit for each form of its own
    cdef int count
    cdef double own[DECAY]

cdef int number_of(str rule) except -1
