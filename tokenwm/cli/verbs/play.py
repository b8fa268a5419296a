"""``tokenwm play MODEL``: a page on which people steer the imagined robot."""

import os
from pathlib import Path

import torch
from rich.console import Console

import tokenwm
from tokenwm.cli.console import say
from tokenwm.cli.devices import take_device
from tokenwm.cli.listening import listen
from tokenwm.cli.options import parse
from tokenwm.cli.verbs.evaluate import known_data
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.sampling import SamplingConfig


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("play", argv)
    console = Console()
    device = take_device(arguments.device, console)
    try:
        from tokenwm.serving.play.app import PlayService
        from tokenwm.serving.play.stage import PlayLimits, Stage
        from tokenwm.serving.server import GuardedServer
    except ModuleNotFoundError as error:
        raise TokenwmError(
            f"`tokenwm play` needs Starlette, uvicorn and websockets ({error}); "
            "pip install 'tokenwm[serve]'"
        ) from error
    model = tokenwm.load(arguments.model, device, dtype=getattr(torch, arguments.dtype))
    if arguments.num_passes is not None:
        model.approximation = Approximation(num_passes=arguments.num_passes)
    reader = _reader(console, arguments.data, arguments.model)
    with console.status("measuring how much surprise is usual …"):
        stage = Stage(
            model,
            reader,
            num_context=arguments.context,
            sampling=SamplingConfig(temperature=arguments.temperature),
            out=arguments.out or arguments.model / "played",
            limits=PlayLimits(max_players=arguments.max_players),
        )
    server, url = listen(
        lambda address: GuardedServer(PlayService(stage), address, arguments.allow_host),
        arguments.host,
        arguments.port,
    )
    say(console, f"play {arguments.model} at {url} (Ctrl-C stops)")
    server.serve_forever()
    os._exit(0)  # a long step cannot be interrupted, and nothing is left to be written


def _reader(console: Console, data: str | None, model: Path) -> ShardReader | None:
    """The recorded episodes; without the model's own, pictures are uploaded to begin from."""
    if data is not None:
        return ShardReader(data)
    try:
        return ShardReader(known_data(console, model))
    except TokenwmError as error:
        say(console, f"no recorded episodes to begin from, only pictures: {error}")
        return None
