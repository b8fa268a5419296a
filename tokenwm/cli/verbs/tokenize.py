"""``tokenwm tokenize FRAMES --tokenizer CHECKPOINT --out DIR``: frame shards → token shards."""

import argparse
import os
from pathlib import Path

import torch
from rich.console import Console

from tokenwm.allocator import keep_freed_memory
from tokenwm.checkpoint import load_tokenizer, tokenizer_files, tokenizer_hash
from tokenwm.cli.console import say
from tokenwm.cli.progress import show_progress
from tokenwm.cli.verbs.prepare import add_engine_options, holds_dataset
from tokenwm.data.shards.manifest import Manifest
from tokenwm.sequence.token_shards import borrow_vocabulary, make_vocabulary, tokenize_shards

WORTH_WORKERS = 20_000
"""Steps from which on encoding takes longer than starting processes for it."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = _parser().parse_args(argv)
    keep_freed_memory()
    manifest = Manifest.load(arguments.frames)
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.device)
    vocabulary = make_vocabulary(
        manifest,
        tokenizer,
        tokenizer_hash(tokenizer),
        num_action_bins=arguments.action_bins,
        num_state_bins=arguments.state_bins,
        method=arguments.bins,
        use_state=not arguments.no_state,
    )
    if arguments.vocabulary_of is not None:
        vocabulary = borrow_vocabulary(arguments.vocabulary_of, vocabulary)
    console = Console()
    made_before = not arguments.overwrite and holds_dataset(arguments.out)
    with show_progress(console, "tokenize") as progress:
        tokens = tokenize_shards(
            arguments.frames,
            arguments.out,
            tokenizer,
            vocabulary,
            tokenizer_files=tokenizer_files(arguments.tokenizer),
            num_shifted_copies=arguments.shifted_copies,
            engine=arguments.engine,
            num_workers=_num_workers(arguments, manifest),
            progress=progress,
            overwrite=arguments.overwrite,
        )
    num_steps = sum(episode.num_steps for episode in tokens.episodes)
    say(
        console,
        f"{len(tokens.episodes)} episodes, {num_steps:,} steps of "
        f"{vocabulary.tokens_per_frame} frame tokens → {arguments.out}",
    )
    if made_before:
        say(console, "made before of the same data and options, and kept")
    return 0


def _num_workers(arguments: argparse.Namespace, manifest: Manifest) -> int:
    """As many as asked for, else one per core where the work is worth starting processes."""
    if arguments.workers is not None:
        return int(arguments.workers)
    on_cpu = torch.device(arguments.device).type == "cpu"
    num_steps = sum(episode.num_steps for episode in manifest.episodes)
    num_steps *= 1 + arguments.shifted_copies
    return (os.cpu_count() or 1) if on_cpu and num_steps > WORTH_WORKERS else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenwm tokenize",
        description="Encode frame shards once, before the world model is trained. Interrupted, the "
        "same command continues.",
    )
    parser.add_argument("frames", metavar="DIR|URL", help="frame shards made by tokenwm prepare")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        metavar="DIR",
        help="run or checkpoint folder of the tokenizer",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR|URL", help="folder of the token shards"
    )
    parser.add_argument(
        "--action-bins",
        type=int,
        default=256,
        metavar="N",
        help="bins per action dimension (default: %(default)s)",
    )
    parser.add_argument(
        "--state-bins",
        type=int,
        default=256,
        metavar="N",
        help="bins per state dimension (default: %(default)s)",
    )
    parser.add_argument(
        "--bins",
        choices=["uniform", "quantile"],
        default="uniform",
        help="even bins over the range of the training data, or as many values in each "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--vocabulary-of",
        metavar="DIR|URL",
        help="take the bins of these token shards, so that both can be mixed in training",
    )
    parser.add_argument(
        "--no-state", action="store_true", help="leave proprioception out of the sequence"
    )
    parser.add_argument(
        "--shifted-copies",
        type=int,
        default=0,
        metavar="N",
        help="copies of every training episode with frames moved by a few pixels, for few episodes "
        "(default: %(default)s)",
    )
    add_engine_options(parser, None)
    parser.add_argument(
        "--device", default="cpu", help="device that encodes (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset in the folder")
    return parser
