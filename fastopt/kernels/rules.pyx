"""What each rule needs at a step, by name: `adam(b1=0.9, u1=0.1, ...)`, and nothing else, or it is an error."""

cimport cython
from cpython.float cimport PyFloat_AsDouble
from cpython.object cimport PyObject, PyObject_IsTrue


cdef extern from "Python.h":
    int METH_FASTCALL
    int METH_KEYWORDS
    object PyCFunction_NewEx(PyMethodDef *method, object self, object module)


@cython.final
@cython.freelist(8)
cdef class Coefficients:
    """The form and the coefficients of a rule at one step, in double precision."""

    def __init__(self):
        raise TypeError("coefficients are made by a rule: rules.adam(b1=..., ...)")

    def named(self):
        """The same as a dict."""
        cdef int k
        cdef Rule rule = self.of
        return {**{form: bool(self.form >> k & 1) for k, form in enumerate(rule.forms)},
                **{name: self.own[k] for k, name in enumerate(rule.coefficients)}}

    def __eq__(self, other):
        return type(other) is Coefficients and self.of is (<Coefficients>other).of and self.named() == other.named()

    def __hash__(self):
        return hash((self.rule, *self.named().values()))

    def __repr__(self):
        return f"{self.of.name}({', '.join(f'{name}={value!r}' for name, value in self.named().items())})"


@cython.final
cdef class Rule:
    """A rule as rules.pxi declares it: the names of its states, forms, coefficients and loops."""

    def __init__(self, str name, int number, tuple states, tuple forms, tuple coefficients, tuple own, tuple loops):
        self.name, self.number, self.states, self.forms, self.coefficients = name, number, states, forms, coefficients
        self.own, self.loops, self.known, self.last = own, loops, {}, None
        signature = ", ".join(["$self", "/", "*", *coefficients, *(f"{form}=False" for form in forms)])
        self.texts = name.encode(), f"{name}({signature})\n--\n\nThe coefficients of a step of the rule.".encode()
        self.method.ml_name, self.method.ml_doc = <bytes>self.texts[0], <bytes>self.texts[1]
        self.method.ml_meth, self.method.ml_flags = <void*>named, METH_FASTCALL | METH_KEYWORDS

    cdef int learn(self, Py_ssize_t values, tuple names) except -1:
        """Finds where the values of a call with these names go; raises unless all coefficients are there."""
        cdef int k
        cdef bytes places
        if values or names is None:
            raise TypeError(f"{self.name} takes its coefficients by name: {', '.join(self.coefficients)}")
        places = self.known.get(names)
        if places is None:
            every = (*self.coefficients, *self.forms)
            for name in names:
                if name not in every:
                    raise TypeError(f"the rule {self.name} has no coefficient {name!r}; it has {', '.join(every)}")
            for name in self.coefficients:
                if name not in names:
                    raise TypeError(f"the rule {self.name} needs the coefficient {name!r}")
            places = self.known[names] = bytes(map(every.index, names))
        for k in range(len(places)):
            self.places[k] = places[k]
        self.last = names
        return 0

    cdef int check_form(self, int form) except -1:
        if form not in self.own:
            held = [name for k, name in enumerate(self.forms) if form >> k & 1]
            raise ValueError(f"the rule {self.name} has no form {' with '.join(held)}")
        return 0


cdef object named(PyObject *self, PyObject **values, Py_ssize_t count, PyObject *names):
    """The coefficients in a call of a rule. The names of one place in the code are one tuple, which is known again."""
    cdef Rule rule = <Rule>self
    cdef Coefficients made
    cdef Py_ssize_t i
    cdef int place
    if names == NULL or count or <PyObject*>rule.last != names:
        rule.learn(count, None if names == NULL else <tuple>names)
    made = Coefficients.__new__(Coefficients)
    made.of, made.rule, made.form, made.count = rule, rule.number, 0, <int>len(rule.coefficients)
    for i in range(len(rule.last)):
        place = rule.places[i]
        if place < made.count:
            made.own[place] = PyFloat_AsDouble(<object>values[i])
        else:
            made.form |= PyObject_IsTrue(<object>values[i]) << (place - made.count)
    if made.form:
        rule.check_form(made.form)
    return made


cdef int number_of(str rule) except -1:
    """The number of a rule."""
    if rule not in TABLE:
        raise ValueError(f"rule must be one of {sorted(TABLE)}, got {rule!r}")
    return (<Rule>TABLE[rule]).number


include "named.pxi"

for _rule in TABLE.values():
    globals()[_rule.name] = PyCFunction_NewEx(&(<Rule>_rule).method, _rule, __name__)
