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
    "cautious": ("mulp", "subp", r"cmp\w*p"),
    "cautious_decay": ("mulp", "subp", r"cmp\w*p"),
    "project": (r"minp|maxp|cmp\w*p",),
    "lookahead": ("mulp", "subp"),
    "prepare": ("mulp", "subp", "addp"),
}
# and each sum and measure: sums are in double, elements in their own dtype; the power is of order 1 and 2
SQUARES, PLAIN = r"(mulpd|fmadd\d+pd)", "addpd"
SUMS = {
    "power_sum": (("cvtps2pd", SQUARES, PLAIN), ("mulpd", PLAIN)),
    "limited_mean": (("cvtps2pd", PLAIN, r"(min|max|cmp\w*)pd"), (PLAIN, r"(min|max|cmp\w*)pd")),
}
MEASURES = {
    "near_sum": (("mulps", "addps"), ("mulpd", PLAIN)),
    "moved_sum": (("subps",), ("subpd",)),
    "agreement": ((r"cmp\w*ps",), (r"cmp\w*pd",)),
    "ratio_sum": (("mulps", "divps", "cvtps2pd", PLAIN), ("mulpd", "divpd", PLAIN)),
}
# what looks ahead of a rule
DIRECTIONS = {
    "momentum": ("mulp", "addp"),
    "moment": ("mulp", "addp"),
    "nesterov_moment": ("mulp", "addp"),
    "scaled_momentum": ("mulp", "addp", "divp", "sqrtp"),
}


def test_every_stage_is_looked_at():
    table = simd.table(simd.level())
    assert set(STAGES) == set(table.STAGES) | {"prepare"}
    assert len(SUMS) == len(table.SUMS)
    assert len(MEASURES) == len(table.MEASURES)
    assert len(DIRECTIONS) == len({id(pair) for pair in table.DIRECTIONS.values()})


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
    assert found or loop == "average_step_first"  # which copies
    assert not re.search(r"cvt(ss2sd|ps2pd|sd2ss|pd2ps)", code), "it computes in another dtype"
    assert "call" not in re.sub(r"call.*(stack_chk|__x86|memcpy|memmove)", "", code), "a loop calls a function"


@pytest.mark.skipif(not cpu.IS_X86, reason="x86-64 only")
@pytest.mark.parametrize("stage", [*STAGES, *SUMS, *MEASURES, *DIRECTIONS])
@pytest.mark.parametrize("fused", [0, 1], ids=["float32", "float64"])
@pytest.mark.parametrize("level", REGISTERS)
def test_a_stage_is_vector_code(level, stage, fused, disassembly):
    code = function(disassembly(level), stage, ["0_0", "1_1"][fused] if stage == "prepare" else fused)
    assert code, "not in the symbol table"
    if stage in SUMS | MEASURES:
        instructions = (SUMS | MEASURES)[stage][fused]
    else:
        instructions = [f"({name}){'sd'[fused]}" for name in (STAGES | DIRECTIONS)[stage]]
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
