"""bfloat16 where the processor computes it.

Where it has no instructions for it, they are imitated, and a step takes twice as long as in float32
(`benchmarks/speed/attack_epoch.py --mixed-precision`); there networks run in float32 whatever an option says. From one
recipe two machines train different networks anyway.
"""

from __future__ import annotations

import functools

import torch

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2")


@functools.cache
def emulated() -> bool:
    """Whether bfloat16 is slower than float32 on this processor: an x86 one without instructions for it.

    Where torch does not say, as older versions do not, bfloat16 is taken, as on other architectures.
    """
    ask = getattr(torch.cpu, "get_capabilities", None)
    found = {} if ask is None else ask()
    return found.get("architecture") == "x86_64" and not any(found.get(name) for name in _INSTRUCTIONS)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Context in which a network runs in bfloat16, if that is asked for and worth it.

    Args:
        device: where the network is.
        enabled: whether it is asked for.
    """
    worth = device.type != "cpu" or not emulated()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and worth)
