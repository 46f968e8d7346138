"""What a processor is called, and which precision suits it."""

import platform

import pytest
import torch

from flows.core import device
from flows.core.device import find_precision, processor

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("vendor", "flags", "precision", "name"),
    [
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", "bfloat16", "GenuineIntel {} AMX"),
        ("GenuineIntel", "avx512f avx512_bf16", "float32", "GenuineIntel {}"),  # where bfloat16 is slower
        ("AuthenticAMD", "avx512f avx512_bf16", "bfloat16", "AuthenticAMD {}"),
        ("AuthenticAMD", "avx2", "float32", "AuthenticAMD {}"),
    ],
)
def test_auto_knows_the_cpus_that_are_faster_in_bfloat16_and_the_metrics_those_with_amx(
    vendor: str, flags: str, precision: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc/cpuinfo describes them."""
    cores = "".join(
        f"processor\t: {core}\nvendor_id\t: {vendor}\nmodel name\t: amx_bf16 of all flags\n"
        f"flags\t\t: fpu {flags} sse2\nvmx flags\t: amx_bf16\nbugs\t\t:\n\n"
        for core in range(2)
    )
    monkeypatch.setattr(device, "cpu_description", lambda: cores)
    assert find_precision("auto", CPU) == precision
    assert find_precision("float32", CPU) == "float32"
    instructions = torch.backends.cpu.get_cpu_capability()
    assert processor(CPU) == f"{platform.machine()} {name.format(instructions)}"


def test_a_cpu_that_nothing_describes_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_description", lambda: "")
    assert find_precision("auto", CPU) == "float32"
    assert " unknown " in processor(CPU)
