"""Watched: containers that hold parameters and settings, compared with the very objects that they held."""

from cpython.dict cimport PyDict_Next
from cpython.ref cimport PyObject

cdef extern from *:
    """
    /* Whether a list or dict still holds the very objects in `known`; -1: it is neither. */
    static inline int fastopt_same(PyObject *container, PyObject *known) {
      const Py_ssize_t count = PyList_GET_SIZE(known);
      PyObject **objects = ((PyListObject *)known)->ob_item, *value;
      Py_ssize_t at = 0, i = 0;
      if (!PyList_Check(container) && !PyDict_Check(container)) return -1;
      if (PyList_Check(container))
        return PyList_GET_SIZE(container) == count
            && (count == 0 || memcmp(((PyListObject *)container)->ob_item, objects, count * sizeof(PyObject *)) == 0);
      if (PyDict_GET_SIZE(container) != count) return 0;
      while (PyDict_Next(container, &at, NULL, &value)) if (objects[i++] != value) return 0;
      return 1;
    }
    """
    int fastopt_same(PyObject *container, PyObject *known) noexcept
    PyObject *PyList_GET_ITEM(list items, Py_ssize_t i) noexcept  # borrowed; Cython's own takes a reference


cdef list held_by(box):
    """What a list or mapping holds, in its order in memory."""
    if isinstance(box, dict):
        return list(dict.values(box))
    return list.copy(box) if isinstance(box, list) else list(box.values())


cdef class Watched:
    """Lists and mappings that hold parameters, and what they held."""

    def __cinit__(self):
        self.containers, self.contents = [], []

    def add(self, containers):
        """Watches more containers."""
        for box in containers:
            self.containers.append(box)
            self.contents.append(held_by(box))

    def take_anew(self, only=None):
        """Takes what all of them hold now, or `only` this one, for what they are to hold."""
        for i, box in enumerate(self.containers):
            if only is None or box is only:
                self.contents[i] = held_by(box)

    cdef bint same(self) except -1:
        """Whether every container holds what it held."""
        cdef Py_ssize_t i
        cdef int same
        for i in range(len(self.containers)):
            same = fastopt_same(PyList_GET_ITEM(self.containers, i), PyList_GET_ITEM(self.contents, i))
            if same < 0:
                same = [*map(id, self.containers[i].values())] == [*map(id, self.contents[i])]
            if not same:
                return False
        return True


cdef class Settled:
    """What the options of a group of parameters came to, while they are the very objects in `seen`.

    Attributes:
        options: a dict that its owner changes between steps.
        seen: the values of `options` when they were last read; None: they are to be read at every step.
        settings: the hyperparameters.
        prepare: what becomes of a gradient before the rule: see `Plan.run`.
        coefficients: a function of the settings and the number of a step.
        later: what `answer` gives from step 2 on, where that stays.
    """

    cdef object answer(self, long long step):
        """What a plan is answered at a step; None: the options are to be read first."""
        if not holds(self.options, self.seen):
            return None
        if step > 1 and self.later is not None:
            return self.later
        return self.prepare, self.coefficients(self.settings, step), ()


def unchanged(dict group not None, list values):
    """Whether the values of `group` are, in order, the very objects in `values`; False for None."""
    return holds(group, values)


cdef bint holds(dict group, list values) except -1:
    cdef Py_ssize_t at = 0, i = 0
    cdef PyObject *key
    cdef PyObject *value
    if values is None or len(group) != len(values):
        return False
    while PyDict_Next(group, &at, &key, &value):
        if <PyObject*>values[i] != value:
            return False
        i += 1
    return True


def same(dict one not None, dict other):
    """Whether two dicts have, in order, the very same keys and values; False for None."""
    cdef Py_ssize_t at = 0, where = 0
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *other_key
    cdef PyObject *other_value
    if other is None or len(one) != len(other):
        return False
    while PyDict_Next(one, &at, &key, &value):
        PyDict_Next(other, &where, &other_key, &other_value)
        if key != other_key or value != other_value:
            return False
    return True


def changed(dict group not None, list values):
    """The keys of `group` whose values are not, in order, the very objects in `values`; None for None or other keys."""
    cdef Py_ssize_t at = 0, i = 0
    cdef PyObject *key
    cdef PyObject *value
    cdef list keys = []
    if values is None or len(group) != len(values):
        return None
    while PyDict_Next(group, &at, &key, &value):
        if <PyObject*>values[i] != value:
            keys.append(<object>key)
        i += 1
    return keys
