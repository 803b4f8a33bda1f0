"""What the figures were measured on."""

import os
import platform
from importlib import metadata

import numpy as np

from .._version import __version__
from ..kernels import cpu, simd, threads


def cpu_model():
    """The name of the CPU, as the kernel or the platform has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def version(package):
    """The version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine():
    """CPU, compiler and versions, for the head of a table. Loads neither torch nor an OpenMP runtime."""
    return {
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores",
        "SIMD level": simd.level(),
        "compiler": cpu.COMPILER,
        "fastopt": __version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "Numba": version("numba"),
        "torch": version("torch"),
        "threads": f"{threads.get_num_threads()} unless a table says otherwise",
    }
