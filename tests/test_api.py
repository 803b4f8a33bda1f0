"""Cython and C clients compile against the installed package and give the optimizer's bits."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastopt

CYTHON = """
    # cython: language_level=3
    from fastopt.api cimport *

    room = FASTOPT_COEFFICIENTS
    places = dict(scale=FASTOPT_SCALE, decay=FASTOPT_DECAY, b1=FASTOPT_ADAM_B1, u1=FASTOPT_ADAM_U1, b2=FASTOPT_ADAM_B2,
                  u2=FASTOPT_ADAM_U2, a=FASTOPT_ADAM_A, r=FASTOPT_ADAM_R, eps=FASTOPT_ADAM_EPS,
                  eps_in=FASTOPT_ADAM_EPS_IN)

    def step(float[::1] p, float[::1] g, float[::1] m, float[::1] v, float[::1] w, float[::1] c):
        cdef fastopt_rule adam = find_rule("adam", sizeof(float),
                                           FASTOPT_SCALED | FASTOPT_DECAYS | FASTOPT_ADAM_AMSGRAD)
        with nogil:
            adam(&p[0], &g[0], &m[0], &v[0], &w[0], NULL, p.shape[0], &c[0])
        return (find_rule("nonsense", 4, 0) == NULL and find_rule("adam", 2, 0) == NULL
                and find_rule("adam", 4, 1 << 20) == NULL and find_rule("sgd", 4, FASTOPT_SGD_NESTEROV) == NULL)
"""

C = """
    #include <fastopt.h>

    static PyObject *step(PyObject *self, PyObject *args) {
      Py_buffer b[6];
      if (!PyArg_ParseTuple(args, "w*y*w*w*w*y*", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5])) return NULL;
      fastopt_rule adam = fastopt_find_rule("adam", sizeof(float),
                                            FASTOPT_SCALED | FASTOPT_DECAYS | FASTOPT_ADAM_AMSGRAD);
      Py_BEGIN_ALLOW_THREADS
      adam(b[0].buf, b[1].buf, b[2].buf, b[3].buf, b[4].buf, NULL, b[0].len / sizeof(float), b[5].buf);
      Py_END_ALLOW_THREADS
      for (int i = 0; i < 6; i++) PyBuffer_Release(&b[i]);
      return PyBool_FromLong(fastopt_find_rule("nonsense", 4, 0) == NULL && fastopt_find_rule("adam", 2, 0) == NULL);
    }

    static PyMethodDef methods[] = {{"step", step, METH_VARARGS, ""}, {NULL, NULL, 0, NULL}};
    static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "client_c", "", -1, methods};

    PyMODINIT_FUNC PyInit_client_c(void) {
      if (fastopt_import() < 0) return NULL;
      PyObject *made = PyModule_Create(&module);
      if (made == NULL || PyModule_AddIntConstant(made, "room", FASTOPT_COEFFICIENTS) < 0) return NULL;
      PyObject *places = Py_BuildValue("{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}", "scale", FASTOPT_SCALE, "decay",
          FASTOPT_DECAY, "b1", FASTOPT_ADAM_B1, "u1", FASTOPT_ADAM_U1, "b2", FASTOPT_ADAM_B2, "u2", FASTOPT_ADAM_U2,
          "a", FASTOPT_ADAM_A, "r", FASTOPT_ADAM_R, "eps", FASTOPT_ADAM_EPS, "eps_in", FASTOPT_ADAM_EPS_IN);
      return PyModule_AddObject(made, "places", places) < 0 ? NULL : made;
    }
"""

SETUP = """
    import sys
    from setuptools import Extension, setup
    source, include = sys.argv[1:3]
    del sys.argv[1:3]
    extension = Extension(source.split(".")[0], [source], include_dirs=[include])
    if source.endswith(".pyx"):
        from Cython.Build import cythonize
        extension, = cythonize(extension)
    setup(name="client", ext_modules=[extension])
"""


@pytest.mark.parametrize(("name", "text"), [("client_cython.pyx", CYTHON), ("client_c.c", C)])
def test_a_client(name, text, tmp_path):
    pytest.importorskip("setuptools")
    pytest.importorskip("Cython")
    (tmp_path / name).write_text(textwrap.dedent(text))
    (tmp_path / "setup.py").write_text(textwrap.dedent(SETUP))
    build = subprocess.run(
        [sys.executable, "setup.py", name, fastopt.get_include(), "-q", "build_ext", "--inplace"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(fastopt.__file__).parents[1])})
    assert build.returncode == 0, build.stdout + build.stderr
    module = name.split(".")[0]
    built, = [path for path in tmp_path.glob(f"{module}.*") if path.suffix in (".so", ".pyd")]
    spec = importlib.util.spec_from_file_location(module, built)
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)

    rng = np.random.default_rng(0)
    param = rng.standard_normal(100).astype("float32")
    twin, (m, v, w) = param.copy(), np.zeros((3, 100), "float32")
    optimizer = fastopt.AdamW(twin, maximize=True, amsgrad=True)
    for step in (1, 2, 3):
        grad = rng.standard_normal(100).astype("float32")
        settings = {**optimizer.param_groups[0]}
        values = fastopt.AdamW.coefficients(settings, step).named()
        values |= {"scale": -1.0, "decay": settings["lr"] * settings["weight_decay"]}
        coefficients = np.zeros(client.room, "float32")
        for name, place in client.places.items():
            coefficients[place] = values[name]
        assert client.step(param, grad, m, v, w, coefficients)
        optimizer.step(grad)
    assert param.tobytes() == twin.tobytes()
    assert m.tobytes() == optimizer.state[0]["exp_avg"].tobytes()
