"""What training runs on: device and processes, number precision, compiler, and how fast it multiplies matrices."""

from __future__ import annotations

import functools
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by accelerate's name of a precision
HARMLESS = {  # variables by which `accelerate` would train otherwise, and the value with which it does not
    "GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "no", "USE_DEEPSPEED": "false", "USE_FSDP": "false",
    "USE_MEGATRON_LM": "false", "USE_PARALLELISM_CONFIG": "false",
}  # fmt: skip


def make_accelerator(precision: str = "auto", device: str = "auto") -> Accelerator:
    """Device, autocast and data parallelism for one run, the way ``accelerate launch`` set them up."""
    refuse_overrides(os.environ)
    cpu = device == "cpu" or not torch.cuda.is_available()
    mixed_precision = resolve_precision(precision, torch.device("cpu" if cpu else "cuda"))
    AcceleratorState._reset_state()  # else a second run in this Python, as in a notebook, must be like the first
    return Accelerator(cpu=cpu, mixed_precision=mixed_precision)


def refuse_overrides(environment: Mapping[str, str]) -> None:
    """Raises ValueError where a variable of `accelerate` would change what training computes, and no record says so.

    Device and precision are settings of ours and stand in the record; ``accelerate launch`` sets the others to what
    changes nothing, unless it is told otherwise.
    """
    for name, harmless in HARMLESS.items():
        value = environment.get(f"ACCELERATE_{name}", harmless)
        if value.lower() not in (harmless, ""):
            raise ValueError(
                f"ACCELERATE_{name}={value!r} changes what training computes, and no record would say so; unset it "
                "(`accelerate launch` may take it from a file of `accelerate config`)."
            )


def resolve_precision(precision: str, device: torch.device, argument: str = "") -> str:
    """``auto`` is bf16 where the GPU has it in hardware, fp16 with loss scaling on older ones, float32 on a CPU.

    On CPUs without AMX autocast costs more than it saves. Raises ValueError for a precision that ``device`` does not
    have; the error calls it ``argument``.
    """
    cpu, argument = device.type == "cpu", argument or f"precision={precision!r}"
    if precision == "fp16" and cpu:
        raise ValueError(f"{argument} needs a CUDA GPU; leave it out, which is float32 on a CPU.")
    if precision == "bf16" and not cpu and not has_ampere(device):
        raise ValueError(
            f"{argument}: {torch.cuda.get_device_name(device)} has no bfloat16 in hardware and would emulate it "
            "slowly; leave it out, which is float16 there (in training with loss scaling)."
        )
    if precision != "auto":
        return precision
    if cpu:
        return "no"
    return "bf16" if has_ampere(device) else "fp16"


@functools.cache
def faster_in_bfloat16(device: str = "auto") -> bool:
    """Whether matrices are multiplied faster in bfloat16 than in float32, measured.

    For code that rounds factors itself. On a CPU it takes AVX512-BF16 or AMX, which no public flag of torch tells.
    """
    where = torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
    return matmul_peak(where, torch.bfloat16) > matmul_peak(where, torch.float32)


def has_ampere(device: torch.device | None = None) -> bool:
    """Whether the GPU is at least an Ampere: has bfloat16 in hardware, and flash attention. A T4 is not; it emulates
    bfloat16, and `torch.cuda.is_bf16_supported` calls that supported."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def existing_device(device: str | torch.device | None) -> torch.device:
    """``device``, or by default the GPU where there is one. Raises ValueError where it is neither a GPU that torch
    sees nor the CPU."""
    gpus = torch.cuda.device_count()
    try:
        found = torch.device(("cuda" if gpus else "cpu") if device is None else device)
    except RuntimeError:
        found = None
    if found and (found.type == "cpu" or found.type == "cuda" and (found.index or 0) < gpus):
        return found
    raise ValueError(
        f"device={str(device)!r} is not here: torch sees the CPU and {gpus} CUDA GPUs; leave device out, or pass 'cpu'."
    )


def compute_dtype(device: torch.device, dtype: torch.dtype | None = None) -> torch.dtype:
    """``dtype``, or by default what ``device`` multiplies fast: bfloat16 from Ampere on, float16 on older cards such
    as the T4 (which emulates bfloat16 and calls that supported), float32 on a CPU.

    Raises ValueError for a dtype that ``device`` does not have.
    """
    names = {value: name for name, value in DTYPES.items()}
    if dtype is not None and dtype not in names:
        raise ValueError(f"dtype={dtype!r} cannot be computed in; choose one of {', '.join(map(str, names))}.")
    return DTYPES[resolve_precision("auto" if dtype is None else names[dtype], device, f"dtype={dtype!r}")]


def compile_network(net: nn.Module, device: torch.device, say: Callable[[str], None] = print) -> bool:
    """Compile ``net`` in place; where that is impossible (no C++ compiler), say so in one line and leave it."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever is missing: training works without
        torch.compiler.reset()
        say(f"torch.compile does not work here ({_first_line(error)}); it goes on without, slower.")
        return False
    net.compile()
    return True


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def matmul_peak(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of the best of ten large square matrix products on ``device``, with torch's current threads."""
    device = torch.device(device)
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best = math.inf
    for _ in range(10):
        wait()
        begin = time.perf_counter()
        a @ a
        wait()
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


def free_memory(device: torch.device) -> float:
    """Bytes that a GPU has left; inf on a CPU, which can swap."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
