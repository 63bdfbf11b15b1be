"""The Triton kernels without a GPU: interpreted against the definition, compiled to machine code, bytes counted."""

import collections
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there where CUDA builds of torch are")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastaug.ops.crop_mix import triton_kernel as kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


SHAPES = [
    *("box is the whole image", "box is empty", "box is a pixel", "all out of view", "all out of view, boxes"),
    *("partner is itself, box", "partner is itself, blend", "one partner for all", "one sample", "one pixel"),
    *("one column", "one row", "odd size", "wide", "tall", "one channel"),
]
KINDS = ["bytes to float32"]
MORE_KINDS = [
    "float32, not contiguous",
    "bytes to bfloat16, not contiguous",
    "float64",
]  # of which the drawn cases have some as well


def interpret(in_processes: Callable[..., str], kinds: list[str]) -> dict[str, Any]:
    """What `interpret_crop_mix.py` finds; its cases have to run in a process of their own."""
    found: dict[str, Any] = json.loads(in_processes(1, Path(__file__).with_name("interpret_crop_mix.py"), *kinds))
    return found


@pytest.fixture(scope="module")
def interpreted(in_processes: Callable[..., str]) -> dict[str, Any]:
    """Every named case in one kind, and all drawn ones."""
    return interpret(in_processes, KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_interpreted_kernels_equal_the_definition(name: str, kind: str, interpreted: dict[str, Any]) -> None:
    """Forward and adjoint, every element written over a NaN."""
    assert interpreted["failed"][f"{name}, {kind}"] == ""


@pytest.mark.slow
def test_they_do_in_every_kind(in_processes: Callable[..., str]) -> None:
    failed = interpret(in_processes, MORE_KINDS)["failed"]
    assert {f"{name}, {kind}" for name in SHAPES for kind in MORE_KINDS} <= failed.keys()
    assert set(failed.values()) == {""}


def test_interpreted_kernels_equal_the_definition_on_drawn_cases(interpreted: dict[str, Any]) -> None:
    drawn = {name: wrong for name, wrong in interpreted["failed"].items() if name.startswith("drawn")}
    assert set(drawn.values()) == {""}
    assert len(interpreted["failed"]) == len(SHAPES) * len(KINDS) + len(drawn)  # none is printed and not looked at


def test_bytes_moved_are_near_the_floor(interpreted: dict[str, Any]) -> None:
    counts = interpreted["traffic"]
    for count in counts.values():
        assert count["stored"] == 4 * 64 * 64 * 3 * 2  # every element once
    assert counts["still"]["most_loads_of_a_byte"] == 1
    assert counts["still"]["moved"] <= 1.05 * counts["still"]["floor"]
    # shifted and mixed: a byte may show in its own view and in its partner's, never more often
    assert counts["mixed"]["most_loads_of_a_byte"] <= 2
    assert counts["mixed"]["pixel_bytes_loaded"] <= counts["mixed"]["in_view"]
    assert counts["mixed"]["moved"] <= 1.05 * counts["mixed"]["floor"]


def compiled(function: Any, pointers: dict[str, str], constants: dict[str, Any], capability: int) -> Any:
    """Machine code of a kernel for contiguous, 16-byte aligned [N,224,224,3], without a device."""
    names = function.arg_names
    _, options = kernel.launch((64, 224, 224, 3))
    constants |= {k: options[k] for k in ("size", "BLOCK", "ROWS")}
    signature: dict[str, Any] = {k: pointers.get(k, "constexpr") for k in names}
    fixed = {(names.index(k),): v for k, v in constants.items()}
    if "strides" in names:
        signature["strides"] = ("i32", "i32", "i32", "constexpr")
        fixed[(names.index("strides"), 3)] = 1
    aligned = {(names.index(k),): [["tt.divisibility", 16]] for k in pointers}
    target, chosen = GPUTarget("cuda", capability, 32), ("num_warps", "enable_fp_fusion")
    return triton.compile(
        ASTSource(function, signature, fixed, aligned), target=target, options={k: options[k] for k in chosen}
    )


def disassembled(binary: bytes, folder: Path) -> tuple[collections.Counter[str], dict[str, int]]:
    """How often each memory instruction stands in a cubin, and its registers, stack and local memory."""
    file = folder / "kernel.cubin"
    file.write_bytes(binary)
    use = subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", file], capture_output=True, text=True, check=True
    )
    code = subprocess.run([TOOLS / "nvdisasm", file], capture_output=True, text=True, check=True)
    usage = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", use.stdout)}
    return collections.Counter(re.findall(r"\b((?:STG|LDG|STL|LDL|FFMA)[.\w]*)", code.stdout)), usage


CAPABILITIES = [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)]
SCALE = {"scale": (0.017, 0.0175, 0.0174)}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("images", "out"), [("*u8", "*bf16"), ("*u8", "*fp32"), ("*fp32", "*fp32")])
def test_forward_compiles_without_spills_and_stores_two_elements_at_once(
    capability: int, images: str, out: str, tmp_path: Path
) -> None:
    pointers = {"images": images, "geometry": "*i32", "colour": "*fp32", "out": out}
    binary = compiled(kernel.forward_kernel, pointers, {**SCALE, "bias": (-2.1, -2.0, -1.8)}, capability)
    code, usage = disassembled(binary.asm["cubin"], tmp_path)
    assert (usage["STACK"], usage["LOCAL"]) == (0, 0)
    assert not [k for k in code if k.startswith(("STL", "LDL", "FFMA"))]  # no spill, no contraction
    assert {k for k in code if k.startswith("STG")} == {"STG.E" if out == "*bf16" else "STG.E.64"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_adjoint_compiles_without_spills_and_stores_two_elements_at_once(capability: int, tmp_path: Path) -> None:
    pointers = {"gradient": "*bf16", "geometry": "*i32", "colour": "*fp32", "users": "*i64", "edges": "*i64"}
    binary = compiled(kernel.adjoint_kernel, {**pointers, "out": "*fp32"}, dict(SCALE), capability)
    code, usage = disassembled(binary.asm["cubin"], tmp_path)
    assert (usage["STACK"], usage["LOCAL"]) == (0, 0)
    assert {k for k in code if k.startswith("STG")} == {"STG.E.64"}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    """The public op on a device against the CPU, values and gradients."""
    from fastaug.ops.crop_mix import Sampling, crop_mix, sample_crop_mix
    from fastaug.seeding import Key

    labels = torch.arange(16)
    sampling = Sampling(sigma=0.375, cutmix=1.0, mixup=0.2, mixup_mode="elem", fill="random")
    params = sample_crop_mix(Key(0, 1, 0), range(16), (65, 70), sampling, white=1.0)
    x = torch.rand(16, 3, 65, 70)
    a, b = x.clone().requires_grad_(), x.cuda().requires_grad_()
    want, target = crop_mix(a, labels, params, classes=16, dtype=dtype)
    got, moved = crop_mix(b, labels.cuda(), params, classes=16, dtype=dtype)
    assert torch.equal(got.cpu(), want)
    assert torch.equal(moved.mass.cpu(), target.mass)
    gradient = torch.randn_like(want)
    want.backward(gradient)
    got.backward(gradient.cuda())
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(b.grad.cpu(), a.grad)
