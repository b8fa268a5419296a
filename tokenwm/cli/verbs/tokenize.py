"""``tokenwm tokenize FRAMES --tokenizer CHECKPOINT --out DIR``: frame shards → token shards."""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tokenwm.checkpoint import (
    find_checkpoint,
    load_tokenizer,
    read_provenance,
    read_vocabulary_of,
    save_tokenizer,
    tokenizer_files,
    tokenizer_hash,
)
from tokenwm.cli.console import console_of, give, say
from tokenwm.cli.describe import of_manifest
from tokenwm.cli.devices import take_device
from tokenwm.cli.options import parse
from tokenwm.cli.options.base import NUM_CORES
from tokenwm.cli.progress import show_progress
from tokenwm.cli.verbs.prepare import holds_dataset
from tokenwm.data.shards.manifest import MANIFEST_NAME, Manifest
from tokenwm.data.storage.folder import open_folder
from tokenwm.sequence.borrowing import borrow_vocabulary, warn_of_values_outside
from tokenwm.sequence.token_shards import make_vocabulary, read_vocabulary, tokenize_shards
from tokenwm.sequence.vocabulary import Vocabulary

WORTH_WORKERS = 20_000
"""Steps from which on encoding takes longer than starting processes for it."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("tokenize", argv)
    console = console_of(arguments)
    manifest = Manifest.load(arguments.frames)
    device = take_device(arguments.device, console)
    tokenizer = load_tokenizer(arguments.tokenizer, device)
    files = tokenizer_files(arguments.tokenizer)
    if arguments.code_margin is not None:
        tokenizer.config = replace(tokenizer.config, code_margin=arguments.code_margin)
        with TemporaryDirectory() as folder:
            changed = Path(folder) / "tokenizer"
            save_tokenizer(changed, tokenizer, read_provenance(arguments.tokenizer))
            files = tokenizer_files(changed)
    vocabulary = make_vocabulary(
        manifest,
        tokenizer,
        tokenizer_hash(tokenizer),
        num_action_bins=arguments.action_bins,
        num_state_bins=arguments.state_bins,
        method=arguments.bins,
        use_state=not arguments.no_state,
        margin=arguments.bin_margin,
    )
    if arguments.vocabulary_of is not None:
        vocabulary = _borrowed(arguments.vocabulary_of, vocabulary)
        warn_of_values_outside(vocabulary, manifest, arguments.vocabulary_of)
    made_before = not arguments.overwrite and holds_dataset(arguments.out)
    with show_progress(console, "tokenize") as progress:
        tokens = tokenize_shards(
            arguments.frames,
            arguments.out,
            tokenizer,
            vocabulary,
            tokenizer_files=files,
            num_shifted_copies=arguments.shifted_copies,
            engine=arguments.engine,
            num_workers=_num_workers(arguments, manifest, device),
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
    give(arguments, {"dataset": arguments.out, **of_manifest(tokens)})
    return 0


def _borrowed(where: Path | str, own: Vocabulary) -> Vocabulary:
    """The vocabulary with the bins of token shards, or of a world model to be fine-tuned."""
    if open_folder(where).size(MANIFEST_NAME) is not None:
        other = read_vocabulary(Manifest.load(where), str(where))
        return borrow_vocabulary(other, own, where)
    other = read_vocabulary_of(find_checkpoint(where, "world_model"))
    return borrow_vocabulary(other, own, where, same_tokenizer=False)


def _num_workers(arguments: argparse.Namespace, manifest: Manifest, device: torch.device) -> int:
    """Number of worker processes: as asked for, else one per core where the work is worth it."""
    if arguments.workers is not None:
        return int(arguments.workers)
    num_steps = sum(episode.num_steps for episode in manifest.episodes)
    num_steps *= 1 + arguments.shifted_copies
    return NUM_CORES if device.type == "cpu" and num_steps > WORTH_WORKERS else 0
