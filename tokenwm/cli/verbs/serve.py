"""``tokenwm serve MODEL``: imagine, score and encode for other processes, over HTTP."""

import argparse
import logging
import os
from pathlib import Path

import torch
from rich.console import Console

import tokenwm
from tokenwm.allocator import keep_freed_memory
from tokenwm.cli.console import say
from tokenwm.cli.verbs.evaluate import device_from
from tokenwm.errors import TokenwmError
from tokenwm.serving.requests import Limits

CPU_BATCH_ROWS, GPU_BATCH_ROWS = Limits.max_batch_rows, 1024
"""Rows computed at once unless told otherwise; the first measured, the second an estimate."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parser().parse_args(argv)
    batch_rows = CPU_BATCH_ROWS if arguments.device == "cpu" else GPU_BATCH_ROWS
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
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s",
        level=logging.INFO if arguments.verbose else logging.WARNING,
    )
    keep_freed_memory()
    model = tokenwm.load(
        arguments.model, device_from(arguments.device), dtype=getattr(torch, arguments.dtype)
    )
    try:
        server = WorldModelServer(
            model, (arguments.host, arguments.port), limits, arguments.allow_host
        )
    except (OSError, OverflowError) as error:
        raise TokenwmError(
            f"cannot listen on {arguments.host}:{arguments.port}: {error}; choose another --port"
        ) from error
    host, port = server.address
    host = f"[{host}]" if ":" in host else host
    say(Console(), f"serving {arguments.model} on http://{host}:{port} (Ctrl-C stops)")
    server.serve_forever()
    if server.service.batcher.is_alive:  # in the middle of a long pass, nothing can interrupt it
        os._exit(0)
    return 0


def parser() -> argparse.ArgumentParser:
    """The verb's arguments."""
    limits = Limits()
    result = argparse.ArgumentParser(
        prog="tokenwm serve",
        description="Imagine, score and encode for other processes (see docs/serving.md); "
        "requests that wait together are computed together.",
    )
    result.add_argument("model", type=Path, help="run or checkpoint folder of the world model")
    result.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; there is no authentication, so leave it on loopback or put a "
        "proxy in front (default: %(default)s)",
    )
    result.add_argument(
        "--port", type=int, default=8600, help="0 takes a free one (default: %(default)s)"
    )
    result.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that the server goes by, may be given again; requests for others are "
        "refused (loopback, this machine's name, --host and IP addresses are known)",
    )
    result.add_argument("-v", "--verbose", action="count", default=0, help="log every request")
    result.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, … (default: %(default)s)"
    )
    result.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="in which the transformer computes (default: %(default)s)",
    )
    for name, default, text in (
        ("--max-rows", limits.max_rows, "imagined rows of a request"),
        ("--max-steps", limits.max_steps, "context steps and actions of a request"),
        ("--max-row-steps", limits.max_row_steps, "imagined rows times actions of a request"),
        ("--max-megabytes", limits.max_body_bytes // 2**20, "size of a request"),
        (
            "--max-held-megabytes",
            limits.max_bytes // 2**20,
            "size of all requests that are received, wait or are answered; beyond, 503",
        ),
        ("--max-queued-rows", limits.max_queued_rows, "rows that may wait; beyond, 503"),
        ("--max-connections", limits.max_connections, "open connections; beyond, 503"),
    ):
        result.add_argument(
            name, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    result.add_argument(
        "--max-batch-rows",
        type=int,
        metavar="N",
        help="rows computed at once; more waits for its turn (default: "
        f"{CPU_BATCH_ROWS} on a CPU, else {GPU_BATCH_ROWS})",
    )
    result.add_argument(
        "--timeout",
        type=float,
        default=limits.timeout,
        metavar="S",
        help="seconds until a request is given up (default: %(default)s)",
    )
    return result
