"""What this build is and how it runs here."""

import os
import platform
import sys

import numpy as np

from ._version import __version__
from .kernels import cpu, simd, threads


def openmp_runtime():
    """The OpenMP library that threaded steps use: loads it. None if this build has no threads."""
    module = threads.parallel()
    if module is None:
        return None
    try:
        with open("/proc/self/maps") as file:
            loaded = sorted({line.split()[-1] for line in file if "omp" in line.rsplit("/", 1)[-1]})
    except OSError:
        loaded = []
    return ", ".join(path for path in loaded if ".so" in path) or "linked statically"


def config():
    """The lines of `show_config`, as a dict."""
    runtime = openmp_runtime()
    return {
        "fastopt": __version__,
        "python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
        "numpy": np.__version__,
        "compiler": cpu.COMPILER,
        "simd": f"{simd.level()} (this CPU runs {', '.join(simd.available())}; FASTOPT_SIMD chooses)",
        "openmp": "not built: every step is serial" if runtime is None else runtime,
        "threads": f"{threads.get_num_threads()} asked, at most {threads.most()} usable",
        "flush subnormals": str(threads.get_flush_subnormals()),
    }


def show_config() -> None:
    """Prints version, Python, NumPy, compiler, SIMD level, OpenMP runtime and threads. Loads the OpenMP runtime.

    >>> import fastopt
    >>> fastopt.show_config()  # doctest: +ELLIPSIS
    fastopt...
    """
    for name, value in config().items():
        print(f"{name:17} {value}")


def get_include() -> str:
    """The folder of `fastopt.h` and of what it includes, for C and C++ extensions that call the rules.

    >>> import os, fastopt
    >>> sorted(os.listdir(fastopt.get_include()))
    ['fastopt.h', 'fastopt_rules.h']
    """
    return os.path.join(os.path.dirname(__file__), "include")
