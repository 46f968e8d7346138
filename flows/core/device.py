"""Find the devices and the precision that the parameters select, and set what torch does on them."""

import os
import platform
import re
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Literal

import joblib
import torch

from flows.core.errors import Exit, UserError
from vdm.choices import Compile, ImagesOn, Precision
from vdm.model import VDM

LONG = 500
"""Calls of a network from which on its compilation, which takes about a minute, saves more time than it takes."""


def find_device(name: str, count: int = 1, rank: int = 0) -> torch.device:
    """Return the device called `name` for the process `rank` of `count` on this machine; call `set_backend`.

    `auto` is the GPU if there is one, else the CPU.  Several processes have a GPU each, the first `count`, or all have
    the same CPU, where torch takes no more threads than a container allows cores.  Raises UserError (exit 2) when the
    machine has no such device, or not as many.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and torch.cuda.device_count() < max(count, (device.index or 0) + 1):
        found = f"torch finds {torch.cuda.device_count() or 'no'} CUDA device(s), numbered from 0"
        raise UserError(f"device {name}, num_devices {count}: {found}; set others, or device: cpu", Exit.USAGE)
    set_backend()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_each(1))
    return device if count == 1 or device.type == "cpu" else torch.device(device.type, rank)


def set_backend(*, training: bool = False) -> None:
    """Set what torch may choose on CUDA."""
    # TF32 has 10 bits of mantissa, and by default convolutions take it: a figure in float32 would not be one.  Nothing
    # else needs it, since with bfloat16 no matrix product is in float32 (in Muon, see its `orthogonalise`).
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Training repeats the same convolutions, so it is worth trying all algorithms.  Elsewhere the choice, which may be
    # another one in the next process, would change the last digits of figures.
    torch.backends.cudnn.benchmark = training


def threads_each(count: int) -> int:
    """Return the number of threads for each of `count` processes on this machine: torch's, or fewer if cores are few.

    Threads of several processes that share a core wait for each other in loops, which may take 20 times as long.
    """
    return min(torch.get_num_threads(), max(1, int(joblib.cpu_count()) // count))


def find_precision(name: Literal["auto", Precision], device: torch.device) -> Precision:
    """Return the precision of matrix products; `auto` is bfloat16 if the hardware is faster with it, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current card
            faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        faster = faster_in_bfloat16(*vendor_and_flags(cpu_description()))
    return "bfloat16" if faster else "float32"


def faster_in_bfloat16(vendor: str, flags: list[str]) -> bool:
    """Whether a CPU with these instruction sets trains faster in bfloat16 than in float32.

    With AMX a step takes 0.6 of the time.  With AVX-512 alone it takes 1.2 times as long on Intel's, and 0.55 of the
    time on AMD's.  Without either, bfloat16 is emulated.
    """
    return "amx_bf16" in flags or (vendor == "AuthenticAMD" and "avx512_bf16" in flags)


def vendor_and_flags(description: str) -> tuple[str, list[str]]:
    """Return the vendor of a CPU, or "unknown", and its instruction sets, from the content of /proc/cpuinfo."""
    found = dict(re.findall(r"^(vendor_id|flags)\s*: (.*)", description, re.MULTILINE))
    return found.get("vendor_id", "unknown"), found.get("flags", "").split()


def cpu_description() -> str:
    """Return the content of /proc/cpuinfo; "" if it cannot be read."""
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return ""


def find_compile(choice: Literal["auto", Compile], device: torch.device) -> Compile:
    """Return whether and how to compile the loss.

    `auto` compiles on GPUs where it can, and never on CPUs, where compiling takes more time than it saves.  Raises
    UserError (exit 2) if another choice needs something that is missing.
    """
    if choice is False or (choice == "auto" and device.type != "cuda"):
        return False
    missing = compiler_problem(device)
    if choice == "auto":
        return not missing
    if missing:
        raise UserError(f"train.compile: {str(choice).lower()} needs {missing}", Exit.USAGE)
    return choice


def compile_long_work(model: VDM, calls: int) -> None:
    """Compile the model's network if it is on CUDA, where that can be done, and is called often."""
    device = next(model.parameters()).device
    if device.type == "cuda" and calls >= LONG and not compiler_problem(device):
        model.compile_network()


def keep_on_device(choice: ImagesOn, num_bytes: int, device: torch.device) -> bool:
    """Whether the training images are kept on the device; `auto`: if they take less than half of its free memory."""
    if choice == "auto" and device.type == "cuda":
        return num_bytes < torch.cuda.mem_get_info(device)[0] / 2
    return choice != "host"


def compiler_problem(device: torch.device) -> str:
    """Return what this machine lacks to compile for the device, and how to get it; "" if nothing."""
    variable, *programs = ("CC", "gcc", "clang") if device.type == "cuda" else ("CXX", "g++", "clang++")
    headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")  # the compiled code includes it
    if not os.environ.get(variable) and not any(map(which, programs)):
        return f"a compiler: install {programs[0]} or set {variable}"
    if not headers.is_file():
        return f"{headers}: install the headers, such as python3-dev"
    if device.type == "cuda" and find_spec("triton") is None:
        return "Triton: install triton"
    if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_properties(device).major < 7:
        return "a card that Triton knows, of compute capability 7.0 or later: set compile to auto"
    return ""


def processor(device: torch.device) -> str:
    """Return the name of the GPU, or the kind of the CPU: it decides the last digits of what is computed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    vendor, flags = vendor_and_flags(cpu_description())
    name = f"{platform.machine()} {vendor} {torch.backends.cpu.get_cpu_capability()}"
    return f"{name} AMX" if "amx_bf16" in flags else name
