# The look at the header of a NumPy array.

cimport numpy as cnp
from cpython.ref cimport PyObject

cdef extern from *:
    """
    /* What a step of many small arrays costs is the look at their headers: one pass over both.
       UNMOVED: the parameter is where and what it was, and can be written. ALIKE: the gradient is as most are, a plain
       array of the very dtype and shape of its parameter. WRITEABLE: and it can be written. */
    enum { FASTOPT_UNMOVED = 1, FASTOPT_ALIKE = 2, FASTOPT_WRITEABLE = 4 };
    static inline size_t fastopt_mix(size_t key, size_t more) { return (key ^ more) * (size_t)0x9E3779B97F4A7C15u; }
    static inline size_t fastopt_header(PyObject *array) {
      PyArrayObject *p = (PyArrayObject *)array;
      const int dimensions = PyArray_NDIM(p);
      const npy_intp *shape = PyArray_DIMS(p);
      size_t key = (size_t)(PyArray_TYPE(p) + 64 * dimensions + 1);
      int k;
      for (k = 0; k < dimensions; k++) key = fastopt_mix(key, (size_t)shape[k]);
      return key;
    }
    /* Whether both are so, for the many: the gradient is a plain array; the type is `descr`, of native byte order. */
    static inline int fastopt_plain(PyObject *param, PyObject *gradient, const char *memory, size_t header,
                                    PyArray_Descr *descr, int writeable) {
      PyArrayObject *p = (PyArrayObject *)param, *g = (PyArrayObject *)gradient;
      const int dimensions = PyArray_NDIM(p);
      const npy_intp *shape = PyArray_DIMS(p), *other = PyArray_DIMS(g);
      const int flags = PyArray_FLAGS(p) & (PyArray_FLAGS(g) | (writeable ? 0 : NPY_ARRAY_WRITEABLE));
      size_t key, differ;
      int k;
      differ = (size_t)((const char *)PyArray_DESCR(p) - (const char *)descr)
             | (size_t)((const char *)PyArray_DESCR(g) - (const char *)descr)
             | (size_t)(PyArray_BYTES(p) - memory)
             | (size_t)(~flags & NPY_ARRAY_CARRAY)
             | (size_t)(unsigned)(PyArray_NDIM(g) ^ dimensions);
      if (differ) return 0;
      key = (size_t)(descr->type_num + 64 * dimensions + 1);
      for (k = 0; k < dimensions; k++) {
        key = fastopt_mix(key, (size_t)shape[k]);
        differ |= (size_t)(shape[k] ^ other[k]);
      }
      return (differ | (key ^ header)) == 0;
    }
    static inline PyArray_Descr *fastopt_type(PyObject *array) { return PyArray_DESCR((PyArrayObject *)array); }
    static inline PyArray_Descr *fastopt_native_type(PyObject *array) {
      return PyArray_ISNOTSWAPPED((PyArrayObject *)array) ? fastopt_type(array) : NULL;
    }
    static inline int fastopt_is_array(PyObject *object) { return Py_TYPE(object) == &PyArray_Type; }
    static inline char *fastopt_memory(PyObject *array) { return PyArray_BYTES((PyArrayObject *)array); }
    static inline int fastopt_look(PyObject *param, PyObject *gradient, const char *memory, size_t header) {
      PyArrayObject *p = (PyArrayObject *)param, *g = (PyArrayObject *)gradient;
      const int dimensions = PyArray_NDIM(p);
      const npy_intp *shape = PyArray_DIMS(p), *other = shape;
      size_t key = (size_t)(PyArray_TYPE(p) + 64 * dimensions + 1);
      int k, seen = 0, alike = 0;
      if (gradient != NULL && Py_TYPE(gradient) == &PyArray_Type) {
        alike = PyArray_DESCR(g) == PyArray_DESCR(p) && PyArray_NDIM(g) == dimensions
            && (PyArray_FLAGS(g) & NPY_ARRAY_CARRAY_RO) == NPY_ARRAY_CARRAY_RO;
        if (alike) other = PyArray_DIMS(g);
      }
      for (k = 0; k < dimensions; k++) {
        key = fastopt_mix(key, (size_t)shape[k]);
        alike &= shape[k] == other[k];
      }
      if (alike) seen = FASTOPT_ALIKE | (PyArray_ISWRITEABLE(g) ? FASTOPT_WRITEABLE : 0);
      if (PyArray_BYTES(p) == memory && key == header && PyArray_ISCARRAY(p)) seen |= FASTOPT_UNMOVED;
      return seen;
    }
    /* Whether all of these are plain arrays, writable, where and what is known of them; memory and header of each stand
       `stride` bytes after those of the one before. */
    static int fastopt_all_there(PyObject **arrays, Py_ssize_t count, const char *memory, const char *header,
                                 size_t stride) {
      Py_ssize_t i;
      int k;
      for (i = 0; i < count; i++, memory += stride, header += stride) {
        PyArrayObject *p = (PyArrayObject *)arrays[i];
        const npy_intp *shape;
        size_t key;
        if (Py_TYPE(arrays[i]) != &PyArray_Type || PyArray_BYTES(p) != *(char *const *)memory || !PyArray_ISCARRAY(p))
          return 0;
        shape = PyArray_DIMS(p);
        key = (size_t)(PyArray_TYPE(p) + 64 * PyArray_NDIM(p) + 1);
        for (k = 0; k < PyArray_NDIM(p); k++) key = fastopt_mix(key, (size_t)shape[k]);
        if (key != *(const size_t *)header) return 0;
      }
      return 1;
    }
    """
    enum:
        UNMOVED "FASTOPT_UNMOVED"
        ALIKE "FASTOPT_ALIKE"
        WRITEABLE "FASTOPT_WRITEABLE"
    cnp.PyArray_Descr *fastopt_type(PyObject *array) noexcept
    cnp.PyArray_Descr *fastopt_native_type(PyObject *array) noexcept  # NULL: it has another byte order
    bint fastopt_is_array(PyObject *object) noexcept
    char *fastopt_memory(PyObject *array) noexcept
    bint fastopt_plain(PyObject *param, PyObject *gradient, const char *memory, size_t header, cnp.PyArray_Descr *descr,
                       bint writeable) noexcept
    size_t fastopt_header(object array) noexcept
    bint fastopt_all_there(PyObject **arrays, Py_ssize_t count, const char *memory, const char *header,
                           size_t stride) noexcept
    int fastopt_look(PyObject *param, PyObject *gradient, const char *memory, size_t header) noexcept
