"""The compiled rules are vector code: what the disassembly says."""

import importlib.util
import re
import shutil
import subprocess

import pytest

from fastopt.kernels import cpu, rules, simd

# per level: the width of its registers in the disassembly
REGISTERS = {"v2": "xmm", "v3": "ymm", "v4": "[yz]mm"}

# what each stage must hold, by the name of its function, in float32 and float64
STAGES = {
    "project": (r"minp|maxp|cmp\w*p",),
    "lookahead": ("mulp", "subp"),
    "prepare": ("mulp", "subp", "addp"),
}
# what is done to an update that is seen before it is made
UPDATES = {
    "move": ("mulp", "addp"),
    "cautious": ("mulp", r"cmp\w*p"),
    "subtract": ("subp",),
    "subtract_decays": ("mulp", "addp", "subp"),
    "subtract_careful": ("mulp", "addp", "subp", r"cmp\w*p"),
    "subtract_rated": ("mulp", "subp"),
    "subtract_decays_rated": ("mulp", "addp", "subp"),
    "subtract_careful_rated": ("mulp", "addp", "subp", r"cmp\w*p"),
}
# and each sum and measure: sums are in double, elements in their own dtype; the power is of order 1 and 2
SQUARES, PLAIN = r"(mulpd|fmadd\d+pd)", "addpd"
SUMS = {
    "power_sum": (("cvtps2pd", SQUARES, PLAIN), ("mulpd", PLAIN)),
    "limited_mean": (("cvtps2pd", PLAIN, r"(min|max|cmp\w*)pd"), (PLAIN, r"(min|max|cmp\w*)pd")),
}
NORMS = {
    "near_sum": (("mulps", "addps"), ("mulpd", PLAIN)),
    "moved_sum": (("subps",), ("subpd",)),
}
MEASURES = {
    "dot": (("cvtps2pd", "mulpd", PLAIN), ("mulpd", PLAIN)),
    "square": ((), ("mulpd", PLAIN)),  # of float32: near_sum
    "distance": (("cvtps2pd", "subpd", "mulpd", PLAIN), ("subpd", "mulpd", PLAIN)),
    "absolute": (("cvtps2pd", "andpd", PLAIN), ("andpd", PLAIN)),
    "agreement": ((r"cmp\w*ps",), (r"cmp\w*pd",)),
    "ratio": (("mulps", "divps", "cvtps2pd", PLAIN), ("mulpd", "divpd", PLAIN)),
}


def test_every_stage_is_looked_at():
    table = simd.table(simd.level())
    assert set(STAGES) == set(table.STAGES) | {"prepare"}
    assert set(UPDATES) == set(table.UPDATES)
    assert len(SUMS) == len(table.SUMS)
    assert len(NORMS) == len(table.NORMS)
    assert set(MEASURES) == set(table.MEASURES)


@pytest.fixture(scope="module")
def disassembly():
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    texts = {}

    def of(level):
        if level not in texts:
            spec = importlib.util.find_spec(f"fastopt.kernels.level_{level}")
            if spec is None:
                pytest.skip(f"{level} is not built here")
            run = subprocess.run(["objdump", "-d", "--no-show-raw-insn", spec.origin], capture_output=True, text=True,
                                 check=True)
            texts[level] = run.stdout
        return texts[level]

    return of


def function(text, rule, fused):
    """The code of one specialisation of a rule, its clones and cold parts included."""
    parts = re.findall(rf"<__pyx_fuse_{fused}__pyx_f_[^>]*level_v\d_{rule}(?:\.[^>]*)?>:\n(.*?)\n\n", text, re.DOTALL)
    return "\n".join(parts)


ARITHMETIC = r"\bv?((?:mul|div|add|sub|sqrt)[sp])"


@pytest.mark.skipif(not cpu.IS_X86, reason="x86-64 only")
@pytest.mark.parametrize("loop", [loop for rule in rules.TABLE.values() for loop in rule.loops])
@pytest.mark.parametrize("fused", [0, 1], ids=["float32", "float64"])
@pytest.mark.parametrize("level", REGISTERS)
def test_a_loop_is_vector_code(level, loop, fused, disassembly):
    code = function(disassembly(level), loop, fused)
    assert code, "not in the symbol table"
    kind = "sd"[fused]
    found = {name[:-1] for name in re.findall(rf"{ARITHMETIC}{kind}\b", code)}
    vectors = {name[:-1] for name in re.findall(rf"{ARITHMETIC}{kind}\b.*%{REGISTERS[level]}\d", code)}
    assert found == vectors, f"no vector code for {found - vectors}"
    assert found or loop in ("average_step_first", "sgd_advance")  # which copies, and does nothing
    assert not re.search(r"cvt(ss2sd|ps2pd|sd2ss|pd2ps)", code), "it computes in another dtype"
    assert "call" not in re.sub(r"call.*(stack_chk|__x86|memcpy|memmove)", "", code), "a loop calls a function"


@pytest.mark.skipif(not cpu.IS_X86, reason="x86-64 only")
@pytest.mark.parametrize("stage", [*STAGES, *UPDATES, *SUMS, *NORMS, *MEASURES])
@pytest.mark.parametrize("fused", [0, 1], ids=["float32", "float64"])
@pytest.mark.parametrize("level", REGISTERS)
def test_a_stage_is_vector_code(level, stage, fused, disassembly):
    code = function(disassembly(level), stage, ["0_0", "1_1"][fused] if stage == "prepare" else fused)
    assert code, "not in the symbol table"
    if stage in SUMS | NORMS | MEASURES:
        instructions = (SUMS | NORMS | MEASURES)[stage][fused]
    else:
        instructions = [f"({name}){'sd'[fused]}" for name in (STAGES | UPDATES)[stage]]
    for instruction in instructions:
        assert re.search(rf"v?{instruction}\b.*%{REGISTERS[level]}\d", code), instruction
    calls = re.findall(r"call.*", re.sub(r"call.*(stack_chk|__x86|pow|largest|total|minus_root|ldexp)", "", code))
    assert not calls, "a loop calls a function"


@pytest.mark.skipif(not cpu.IS_X86, reason="x86-64 only")
@pytest.mark.parametrize(("sweeps", "instructions"), [
    ("matrices", {"0_0": ("mulps", "subps", "mulpd", "addpd", "cvtps2pd"), "1_1": ("mulpd", "subpd", "addpd")}),
    ("vector", {"0_0": ("divps", "sqrtps", "subps", "addpd", "cvtps2pd"), "1_1": ("divpd", "sqrtpd", "addpd")}),
])
@pytest.mark.parametrize("fused", ["0_0", "1_1"], ids=["float32", "float64"])
@pytest.mark.parametrize("level", REGISTERS)
def test_the_sweeps_of_adafactor_are_vector_code(level, sweeps, instructions, fused, disassembly):
    if cpu.COMPILER.startswith("clang") and (sweeps, fused) == ("vector", "0_0"):
        pytest.skip("clang adds the float32 numbers of a vector to its double sums one by one")
    code = function(disassembly(level), sweeps, fused)
    for instruction in instructions[fused]:
        assert re.search(rf"v?{instruction} .*%{REGISTERS[level]}\d", code), instruction
    assert not re.search(r"call.*<(fmin|fmax|sqrt)", code)


@pytest.mark.skipif(not cpu.IS_X86, reason="x86-64 only")
@pytest.mark.parametrize("level", REGISTERS)
def test_nothing_is_contracted(level, disassembly):
    code = disassembly(level)
    for name in ("power_sum", "near_sum"):  # squares of float32 numbers are exact in double: see add_square
        code = code.replace(function(code, name, 0), "")
    assert not re.search(r"vfn?m(add|sub)", code)
