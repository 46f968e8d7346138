"""The types of single parameters, with their limits."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError


def device_name(name: str) -> str:
    """Return the name.  Raises PydanticCustomError unless it is auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", name):  # torch reads cuda:256 as cuda:0
        raise PydanticCustomError("device", "Input should be auto, cpu, cuda or cuda:N")
    return name


def compile_choice(value: object) -> object:
    """Return the value.  Raises PydanticCustomError unless it is auto, true or false."""
    if value != "auto" and not isinstance(value, bool):
        raise PydanticCustomError("compile", "Input should be auto, true or false")
    return value


def source(text: str) -> str:
    """Return the text.  Raises ValueError unless it can be the path of a folder or a file, which need not exist."""
    if not text.strip() or "\0" in text:
        raise ValueError(f"must name a folder or a file, or be null, got {text!r}")
    if "://" in text:
        raise ValueError(f"must name a folder or a file of this machine, got {text!r}; download it first")
    try:
        Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text!r} begins with a user who has no home folder; name the folder itself") from error
    return text


def require_devices(device: str, num_devices: int) -> None:
    """Raise ValueError if `device` names one card and `num_devices` is above 1."""
    if num_devices > 1 and ":" in device:
        raise ValueError(f"device {device} is one device, but num_devices is {num_devices}")


Positive = Annotated[int, Field(ge=1, le=10**12)]
NonNegative = Annotated[int, Field(ge=0, le=10**12)]
BatchSize = Annotated[int, Field(ge=1, le=10**6)]
# With more steps, float32 does not separate neighbouring noise levels well.
Timesteps = Annotated[int, Field(ge=1, le=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Gamma = Annotated[float, Field(ge=-60, le=60)]
Source = Annotated[str, AfterValidator(source)]
Compile = Annotated[Literal["auto"] | bool, BeforeValidator(compile_choice)]
Device = Annotated[str, AfterValidator(device_name)]
Devices = Annotated[int, Field(ge=1, le=4096)]
ImageNet = Literal["imagenet32", "imagenet64", "imagenet32_2016", "imagenet64_2016"]
