"""``tokenwm serve MODEL``: imagine, score and encode for other processes, over HTTP."""

import argparse
import logging
from pathlib import Path

import torch
from rich.console import Console

import tokenwm
from tokenwm.allocator import keep_freed_memory
from tokenwm.cli.evaluate import device_from
from tokenwm.errors import TokenwmError
from tokenwm.uses.serving.requests import Limits
from tokenwm.uses.serving.server import WorldModelServer


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parser().parse_args(argv)
    limits = Limits(
        max_body_bytes=arguments.max_megabytes * 2**20,
        max_rows=arguments.max_rows,
        max_queued_rows=arguments.max_queued_rows,
        timeout=arguments.timeout,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    keep_freed_memory()
    model = tokenwm.load(
        arguments.model, device_from(arguments.device), dtype=getattr(torch, arguments.dtype)
    )
    try:
        server = WorldModelServer(model, (arguments.host, arguments.port), limits)
    except (OSError, OverflowError) as error:
        raise TokenwmError(
            f"cannot listen on {arguments.host}:{arguments.port}: {error}; choose another --port"
        ) from error
    host, port = server.server_address[:2]
    Console().print(f"serving {arguments.model} on http://{host!s}:{port} (Ctrl-C stops)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
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
        "--device", default="cpu", help="cpu, cuda, cuda:1, … (default: %(default)s)"
    )
    result.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="in which the transformer computes (default: %(default)s)",
    )
    for name, default, text in (
        ("--max-rows", limits.max_rows, "imagined rows of a request and of a batch"),
        ("--max-queued-rows", limits.max_queued_rows, "rows that may wait; beyond, 503"),
        ("--max-megabytes", limits.max_body_bytes // 2**20, "size of a request"),
    ):
        result.add_argument(
            name, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    result.add_argument(
        "--timeout",
        type=float,
        default=limits.timeout,
        metavar="S",
        help="seconds until a request is given up (default: %(default)s)",
    )
    return result
