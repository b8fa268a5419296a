"""``tokenwm serve MODEL``: imagine, score and encode for other processes, over HTTP."""

import os

import torch
from rich.console import Console

import tokenwm
from tokenwm.cli.console import say
from tokenwm.cli.devices import take_device
from tokenwm.cli.listening import listen
from tokenwm.cli.options import parse
from tokenwm.errors import TokenwmError
from tokenwm.serving.requests import Limits

CPU_BATCH_ROWS, GPU_BATCH_ROWS = Limits.max_batch_rows, 1024
"""Rows computed at once unless told otherwise; the first measured, the second an estimate."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("serve", argv)
    console = Console()
    device = take_device(arguments.device, console)
    batch_rows = CPU_BATCH_ROWS if device.type == "cpu" else GPU_BATCH_ROWS
    limits = Limits(
        max_body_bytes=arguments.max_megabytes * 2**20,
        max_bytes=arguments.max_held_megabytes * 2**20,
        max_batch_rows=batch_rows if arguments.max_batch_rows is None else arguments.max_batch_rows,
        max_connections=arguments.max_connections,
        max_rows=arguments.max_rows,
        max_steps=arguments.max_steps,
        max_row_steps=arguments.max_row_steps,
        max_queued_rows=arguments.max_queued_rows,
        timeout=arguments.timeout,
    )
    try:
        from tokenwm.serving.server import WorldModelServer
    except ModuleNotFoundError as error:
        raise TokenwmError(
            f"`tokenwm serve` needs Starlette and uvicorn ({error}); pip install 'tokenwm[serve]'"
        ) from error
    model = tokenwm.load(arguments.model, device, dtype=getattr(torch, arguments.dtype))
    server, url = listen(
        lambda address: WorldModelServer(model, address, limits, arguments.allow_host),
        arguments.host,
        arguments.port,
    )
    say(console, f"serving {arguments.model} on {url} (Ctrl-C stops)")
    server.serve_forever()
    if server.service.batcher.is_alive:  # in the middle of a long pass, nothing can interrupt it
        os._exit(0)
    return 0
