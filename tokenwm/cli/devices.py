"""The device that ``--device`` asks for."""

import torch
from rich.console import Console

from tokenwm.allocator import keep_freed_memory
from tokenwm.cli.console import say
from tokenwm.errors import TokenwmError


def take_device(name: str, console: Console) -> torch.device:
    """The device on which a verb computes from now on; says which it is.

    Raises:
        TokenwmError: There is no such device here.
    """
    keep_freed_memory()
    device = device_from(name)
    say(console, f"on {device}")
    return device


def device_from(name: str) -> torch.device:
    """A device by its name; ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        TokenwmError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise TokenwmError(f"--device {name} cannot be used: {reason}; try cpu, or auto") from error
    return device
