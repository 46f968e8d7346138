"""Find the devices and the precision that the parameters select."""

import os
import platform
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Literal

import joblib
import torch

from flows.core.errors import Exit, UserError
from vdm.choices import Precision


def find_device(name: str, count: int = 1, rank: int = 0) -> torch.device:
    """Return the device called `name` for the process `rank` of `count` on this machine, and switch TF32 off.

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
    # By default torch computes float32 convolutions with 10 bits of mantissa on recent GPUs.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_each(1))
    return device if count == 1 or device.type == "cpu" else torch.device(device.type, rank)


def threads_each(count: int) -> int:
    """Return the number of threads for each of `count` processes on this machine: torch's, or fewer if cores are few.

    Threads of several processes that share a core wait for each other in loops, which may take 20 times as long.
    """
    return min(torch.get_num_threads(), max(1, int(joblib.cpu_count()) // count))


def find_precision(name: Literal["auto", Precision], device: torch.device) -> Precision:
    """Return the precision of matrix products; `auto` is bfloat16 if the hardware supports it, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current card
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # emulated bfloat16 is slower than float32
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bfloat16" if native else "float32"


def find_compile(choice: Literal["auto"] | bool, device: torch.device) -> bool:
    """Whether to compile the network.

    `auto` compiles on GPUs where it can, and never on CPUs, where compiling takes more time than it saves.  Raises
    UserError (exit 2) if the choice is true and something is missing.
    """
    if choice is False or (choice == "auto" and device.type != "cuda"):
        return False
    missing = missing_to_compile(device)
    if missing and choice is True:
        raise UserError(f"train.compile: true needs {missing}", Exit.USAGE)
    return not missing


def missing_to_compile(device: torch.device) -> str:
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
    vendor = "unknown"
    with suppress(OSError, IndexError):
        vendor = Path("/proc/cpuinfo").read_text().partition("vendor_id")[2].split()[1]
    return f"{platform.machine()} {vendor} {torch.backends.cpu.get_cpu_capability()}"
