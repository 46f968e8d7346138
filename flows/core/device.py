"""Find the devices and the precision that the parameters select, and name the processor."""

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
    match device.type:
        case "cuda" if not torch.cuda.is_available():
            raise UserError(f"device {name}: torch finds no CUDA device; set device to auto or cpu", Exit.USAGE)
        case "cuda" if (device.index or 0) >= torch.cuda.device_count():
            found = f"this machine has {torch.cuda.device_count()} CUDA devices, numbered from 0"
            raise UserError(f"device {name}: {found}; choose one of them", Exit.USAGE)
        case "cuda" if count > torch.cuda.device_count():
            found = f"this machine has {torch.cuda.device_count()} CUDA devices"
            raise UserError(f"num_devices {count}: {found}; lower num_devices, or set device: cpu", Exit.USAGE)
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

    `auto` compiles on GPUs that Triton supports, if Triton, a C compiler and Python's headers are installed, and never
    on CPUs, where compiling takes more time than it saves.  Raises UserError (exit 2) if the choice is true and the
    compiler or the headers are missing.
    """
    variable, *programs = ("CC", "gcc", "clang") if device.type == "cuda" else ("CXX", "g++", "clang++")
    found = bool(os.environ.get(variable) or any(map(which, programs)))
    headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")  # the compiled code includes it
    if choice == "auto":
        installed = found and headers.is_file() and find_spec("triton") is not None
        return device.type == "cuda" and installed and is_known_to_triton(device)
    if choice and not found:
        raise UserError(f"train.compile: true needs a compiler: install {programs[0]} or set {variable}", Exit.USAGE)
    if choice and not headers.is_file():
        raise UserError(f"train.compile: true needs {headers}: install the headers, such as python3-dev", Exit.USAGE)
    return choice


def is_known_to_triton(card: torch.device) -> bool:
    """Whether Triton compiles for the card: any of AMD's, or one of NVIDIA's from compute capability 7.0."""
    return torch.version.hip is not None or torch.cuda.get_device_properties(card).major >= 7


def processor(device: torch.device) -> str:
    """Return the name of the GPU, or the kind of the CPU: it decides the last digits of what is computed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    vendor = "unknown"
    with suppress(OSError, IndexError):
        vendor = Path("/proc/cpuinfo").read_text().partition("vendor_id")[2].split()[1]
    return f"{platform.machine()} {vendor} {torch.backends.cpu.get_cpu_capability()}"
