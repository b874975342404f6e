"""The Triton kernels, compiled for a GPU that isn't there: what the interpreter, which has no types, can't see."""

import re
import subprocess

import pytest
import torch
from kernel_cases import DRAW, RULE, factors, moves

from trainer.optim.ivon_rules import Rule
from trainer.optim.kernels import Draw
from trainer.optim.noise import DrawKey, Stream

triton = pytest.importorskip("triton")
cuda = pytest.importorskip("trainer.optim.kernels.cuda", exc_type=ImportError)

KERNELS = cuda.CUDAKernels()
POINTERS = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8"}
OTHER_DRAW = Draw(DrawKey(2**64 - 3, Stream.LABEL_NOISE, 2**32 - 1, 16, 1), sign=1.0)
OTHER_RULE = Rule(**{**vars(RULE), "lr": 1, "beta1": 0.5, "beta2": 1, "weight_decay": 0, "clip_radius": 1})


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def launches(monkeypatch):
    """What would be launched: kernels with their arguments."""
    seen = []
    monkeypatch.setattr(cuda, "_launch", lambda kernel, number, device, arguments: seen.append((kernel, arguments)))
    return seen


def perturb(draw, rule):
    made = factors([(4096,)])
    KERNELS.perturb(made, [torch.empty(4096)], draw)


def update(draw, rule):
    KERNELS.update(moves([(4096,)]), rule, draw, torch.tensor(True))


def usable(draw, rule):
    KERNELS.usable([torch.zeros(4096)], 1.0)


def price(draw, rule):
    move = moves([(4096,)])[0]
    KERNELS.price(move.factor, draw, move.grad)


def normal(draw, rule):
    KERNELS.normal(torch.empty(4096), draw.key, 1)


def source_of(kernel, arguments):
    """What Triton would compile for these arguments: types, constants, and which addresses and sizes divide by 16."""
    types, constants, hints = {}, {}, {}
    for place, (parameter, value) in enumerate(zip(kernel.params, (*arguments, cuda.NUM_BLOCKS), strict=True)):
        hinted = not parameter.do_not_specialize
        if parameter.is_constexpr:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[parameter.name], hints[(place,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[parameter.name] = "fp32"
        else:
            assert -(2**31) <= value < 2**31
            types[parameter.name] = "i32"
            if hinted and value % 16 == 0:
                hints[(place,)] = [["tt.divisibility", 16]]
    return types, constants, hints


@pytest.mark.parametrize(
    ("work", "num_wide_loads", "num_wide_stores"),
    [
        (perturb, 2 * 4, 2 * 4),
        (usable, 4, 0),
        (update, 4 * 4, 3 * 4),
        (price, 2 * 4, 4),
        (normal, 0, 4),
    ],
)
def test_it_compiles_for_hopper_with_wide_accesses_and_no_spills(
    work, num_wide_loads, num_wide_stores, launches, tmp_path
):
    """A thread takes four vectors of an array 16 bytes at a time, and keeps all in registers."""
    work(DRAW, RULE)
    [(kernel, arguments)] = launches
    source = triton.compiler.ASTSource(kernel, *source_of(kernel, arguments))
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options=cuda._OPTIONS)
    ptx = compiled.asm["ptx"]
    num_count_loads = 2 if work in {perturb, update} else int(work is not usable)  # of the counters, for each branch
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == num_wide_loads + num_count_loads
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == num_wide_stores
    program = tmp_path / "kernel.cubin"
    program.write_bytes(compiled.asm["cubin"])
    report = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(program)]
    assert " STACK:0 " in subprocess.run(report, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("work", [perturb, usable, update, price, normal])
def test_no_step_needs_new_code(work, launches):
    """Types and constants stay the same through schedules, whatever whole numbers a user gives, and all draws."""
    for draw, rule in ((DRAW, RULE), (OTHER_DRAW, OTHER_RULE)):
        work(draw, rule)
    first, second = (source_of(*launch) for launch in launches)
    assert first == second
