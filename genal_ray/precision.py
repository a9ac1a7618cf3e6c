"""Which floating-point type a part computes in."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


@cache
def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively (avx512_bf16 or AMX)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def resolve_dtype(precision: Precision, device: torch.device | str) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively, else float32."""
    if precision != "auto":
        return getattr(torch, precision)  # type: ignore[no-any-return]
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if cpu_has_bf16() else torch.float32
