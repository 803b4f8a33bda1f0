/* fastopt for C and C++ extensions: find a rule once, call it without the GIL.
 *
 *     if (fastopt_import() < 0) return NULL;                  // once, with the GIL, sets a Python error
 *     fastopt_rule adam = fastopt_find_rule("adam", sizeof(float), FASTOPT_DECAYS);
 *     float coefficients[FASTOPT_COEFFICIENTS];
 *     coefficients[FASTOPT_ADAM_B1] = b1, coefficients[FASTOPT_ADAM_U1] = 1 - b1; ...
 *     adam(param, grad, exp_avg, exp_avg_sq, NULL, NULL, n, coefficients);
 *
 * fastopt_rules.h has the forms and coefficients of each rule; fastopt/api.pxd says what they mean. The folder of this
 * file is fastopt.get_include().
 */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <Python.h>

#include "fastopt_rules.h"

typedef void (*fastopt_rule)(void *param, void *grad, void *state0, void *state1, void *state2, void *state3,
                             Py_ssize_t n, const void *coefficients);

static fastopt_rule (*fastopt_find_rule)(const char *name, int itemsize, int forms) = NULL;

static int fastopt_import(void) {
  PyObject *module = PyImport_ImportModule("fastopt.api");
  PyObject *table = module ? PyObject_GetAttrString(module, "__pyx_capi__") : NULL;
  PyObject *capsule = table ? PyMapping_GetItemString(table, "find_rule") : NULL;
  void *address = capsule ? PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)) : NULL;
  Py_XDECREF(capsule);
  Py_XDECREF(table);
  Py_XDECREF(module);
  if (address == NULL) return -1;
  fastopt_find_rule = (fastopt_rule (*)(const char *, int, int))address;
  return 0;
}

#endif
