"""The compiled modules and their compiler flags; everything else stands in pyproject.toml.

Environment variables read at build time:
  FASTOPT_OPENMP=0   build without threads (also what happens when the compiler has no OpenMP)
  FASTOPT_LEVELS=v3  build these levels only, with commas between them
  FASTOPT_STRICT=1   double arithmetic in a float32 loop is an error (used by CI)
"""

import os
import platform
import runpy
import shlex
import tempfile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")

# One copy of the rules per level. The flags and the check in plan.pyx name the same CPU features.
LEVELS = (
    {
        "v2": ["-msse4.2"],
        "v3": ["-mavx2", "-mfma"],
        "v4": ["-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=256"],
    }
    if X86
    else {"base": []}
)

if os.environ.get("FASTOPT_LEVELS"):
    LEVELS = {level: LEVELS[level] for level in os.environ["FASTOPT_LEVELS"].split(",")}

# Same bits on every level: no contraction into FMA, no fast-math. The other two let sqrt and selects vectorise.
RULES = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
         "-Wdouble-promotion", "-Wfloat-conversion"]
if os.environ.get("FASTOPT_STRICT") == "1":
    RULES += ["-Werror=double-promotion", "-Werror=float-conversion"]

MSVC = {"-O3": "/O2", "-ffp-contract=off": "/fp:precise", "-mavx2": "/arch:AVX2", "-mavx512f": "/arch:AVX512",
        "-fopenmp": "/openmp"}


def extension(name, flags, depends=()):
    return Extension(
        f"fastopt.{name}",
        [f"fastopt/{name.replace('.', '/')}.pyx"],
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")],
        extra_compile_args=flags,
        depends=[f"fastopt/{path}" for path in depends],
    )


class BuildExt(build_ext):
    """Adapts the flags to the compiler and leaves the threaded walk out where there is no OpenMP."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            for ext in self.extensions:
                ext.extra_compile_args = [MSVC[flag] for flag in ext.extra_compile_args if flag in MSVC]
        self.extensions = [ext for ext in self.extensions if "parallel" not in ext.name or self.with_openmp(ext)]
        self.parallel = self.parallel or min(4, os.cpu_count() or 1)  # a compiler takes up to 300 MB
        super().build_extensions()

    def with_openmp(self, ext):
        if os.environ.get("FASTOPT_OPENMP") == "0":
            return False
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "openmp.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=ext.extra_compile_args)
                # setuptools links a program without CFLAGS and LDFLAGS, which what a sanitizer compiled needs
                flags = shlex.split(f"{os.environ.get('CFLAGS', '')} {os.environ.get('LDFLAGS', '')}")
                self.compiler.link_executable(objects, "openmp", folder, extra_postargs=ext.extra_link_args + flags)
            except Exception as error:
                print(f"fastopt: no OpenMP with this compiler, building without threads ({error})")
                return False
        return True


runpy.run_path(str(Path(__file__).parent / "fastopt" / "kernels" / "loops.py"), run_name="__main__")
tables = ["kernels/tables.pxd", "kernels/rules.pxd", "kernels/walk.pxd", "kernels/clean.pxi", "kernels/sums.pxi"]
owned = ["kernels/memory.pxd", "kernels/written.pxd"]
rules = [f"kernels/{name}" for name in (
    "clean.pxi", "elements.pxi", "rules.pxi", "rules.pxd", "loops.pxi", "stages.pxi", "factored.pxi")]
extensions = [extension(f"kernels.level_{level}", RULES + flags, rules) for level, flags in LEVELS.items()]
extensions.append(extension("kernels.cpu", ["-O2"]))
extensions.append(extension("kernels.hold", ["-O2"], ["kernels/hold.pxd"]))
extensions.append(extension("kernels.memory", ["-O2"], ["kernels/memory.pxd"]))
extensions.append(extension("kernels.written", ["-O2"], owned))
extensions.append(extension("kernels.watched", ["-O2"], ["kernels/watched.pxd"]))
extensions.append(extension("kernels.checks", ["-O2"], ["kernels/checks.pxd"]))
extensions.append(extension("kernels.walk", ["-O3", "-ffp-contract=off"], [*tables, "kernels/flush.pxi"]))
extensions.append(extension("kernels.rules", ["-O2"], ["kernels/rules.pxd", "kernels/named.pxi"]))
extensions.append(extension("kernels.plan", ["-O3", "-ffp-contract=off"], [
    *tables, *owned, "kernels/hold.pxd", "kernels/headers.pxd", "kernels/watched.pxd", "kernels/checks.pxd"]))
extensions.append(extension("kernels.checksum", ["-O2"]))
extensions.append(extension("kernels.rows", ["-O3", "-ffp-contract=off"]))
extensions.append(extension("kernels.norms", ["-O2", "-ffp-contract=off"], ["kernels/sums.pxi"]))
extensions.append(extension("kernels.factored", ["-O2"], ["kernels/flush.pxi"]))
extensions.append(extension("api", ["-O2"], ["api.pxd", "api_rules.pxi", "kernels/rules.pxd"]))
parallel = extension("kernels.parallel", ["-O3", "-fopenmp"], tables[:3])
parallel.extra_link_args = [] if platform.system() == "Windows" else ["-fopenmp"]
extensions.append(parallel)

setup(ext_modules=cythonize(extensions, language_level=3, show_all_warnings=True), cmdclass={"build_ext": BuildExt})
