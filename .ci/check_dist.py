"""Checks what the wheel and the sdist hold: no generated C; stubs, .pxd and header for users."""

import sys
import tarfile
import zipfile
from pathlib import Path

WHEEL = {
    "fastopt/py.typed", "fastopt/api.pxd", "fastopt/api.pyi", "fastopt/include/fastopt.h",
    "fastopt/api_rules.pxi", "fastopt/include/fastopt_rules.h",
    "fastopt/kernels/plan.pyi", "fastopt/kernels/cpu.pyi", "fastopt/kernels/parallel.pyi",
}
SDIST = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", "fastopt/kernels/rules.pxi",
         "fastopt/kernels/loops.py",
         "fastopt/kernels/plan.pyx", "fastopt/kernels/tables.pxd", "tests/test_methods.py", "tests/data/torch.npz"}

for path in sys.argv[1:]:
    if path.endswith(".whl"):
        names = set(zipfile.ZipFile(path).namelist())
        wanted = WHEEL | {str(path) for path in Path().glob("fastopt/**/*.py")}
        unwanted = (".c", ".pyx", ".pxi", ".npz")
    else:
        names = {name.split("/", 1)[-1] for name in tarfile.open(path).getnames()}
        wanted, unwanted = SDIST, (".c", ".so", ".pyc")
    missing = wanted - names
    extra = [name for name in names if name.endswith(unwanted) and name not in wanted]
    print(path.rsplit("/", 1)[-1], len(names), "files")
    if missing or extra:
        sys.exit(f"missing: {sorted(missing)}; not to be there: {sorted(extra)}")
