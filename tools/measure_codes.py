"""What a margin for codes, and noise, do to the tokens of held-out episodes; prints JSON.

    python tools/measure_codes.py --tokenizer runs/g1/tokenizer --data runs/g1/frames

For every margin and level of noise (whole levels in [-n, n], added to every value of every pixel):
the share of tokens that change from one step to the next, over whole episodes; PSNR of what the
tokens of a noisy frame decode to against the clean frame; and, from starts as in ``evaluate``, PSNR
by horizon of the true tokens, anchored at the last observed frame (``anchored``: encoding begins 4
frames before the future; ``anchored_episode``: with the episode), and of that frame, against the
clean future. ``begun_late`` is the share of tokens of the last observed frame that differ between
the two. Means over frames, or starts.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenwm.checkpoint import load_tokenizer
from tokenwm.data.shards.manifest import SPLITS
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import psnr_from_mse
from tokenwm.evaluation.pixels import squared_error
from tokenwm.imagination.pixels import anchored
from tokenwm.imagination.starts import Start, choose_starts
from tokenwm.tokenizer.frames import FrameTokenizer, to_uint8

HORIZONS = (1, 3, 5, 10, 20)
NUM_CONTEXT = 4


def noisy(frames: Tensor, levels: int) -> Tensor:
    """Frames with noise, the same at every call; ``(..., 3)`` uint8."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-levels, levels + 1, frames.shape, generator=generator)
    return (frames + noise).clamp(0, 255).to(torch.uint8)


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Mean PSNR of ``(B, cameras, H, W, 3)`` uint8 pictures, dB."""
    return float(psnr_from_mse(squared_error(pictures, truth).numpy()).mean())


@torch.inference_mode()
def over_episodes(
    tokenizer: FrameTokenizer, clean: dict[str, Tensor], seen: dict[str, Tensor]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Changes and reconstruction over whole episodes, and the tokens of each."""
    changed, squares, tokens = [], [], {}
    for key, frames in seen.items():
        tokens[key] = tokenizer.encode_sequence(frames[None])[0]
        changed.append((tokens[key][1:] != tokens[key][:-1]).float().mean(1))
        squares.append(squared_error(tokenizer.decode_frames(tokens[key]), clean[key]))
    figures = {
        "changed": float(torch.cat(changed).mean()),
        "reconstruction": float(psnr_from_mse(torch.cat(squares).numpy()).mean()),
    }
    return figures, tokens


@torch.inference_mode()
def from_starts(
    tokenizer: FrameTokenizer,
    clean: Tensor,
    seen: Tensor,
    tokens_of_episode: Tensor,
) -> dict[str, Any]:
    """True tokens anchored at the last observed frame, and persistence, by horizon.

    Args:
        tokenizer: With the margin to measure.
        clean: ``(B, C + H, cameras, height, width, 3)`` uint8.
        seen: The same with noise.
        tokens_of_episode: ``(B, C + H, K)``, if encoding began with the episode.
    """
    last = NUM_CONTEXT - 1
    begun_late = tokenizer.encode_sequence(seen)
    observed = seen[:, last].float() / 255.0
    by_horizon = {}
    for horizon in HORIZONS:
        truth = clean[:, last + horizon]
        figures = {"persistence": psnr(seen[:, last], truth)}
        for name, tokens in (("anchored", begun_late), ("anchored_episode", tokens_of_episode)):
            before, decoded = (
                tokenizer.decode_to_unit(tokens[:, t]) for t in (last, last + horizon)
            )
            figures[name] = psnr(to_uint8(anchored(decoded, before, observed)), truth)
        by_horizon[horizon] = figures
    differing = (tokens_of_episode[:, last] != begun_late[:, last]).float().mean()
    return {"begun_late": float(differing), "horizons": by_horizon}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All margins and levels of noise over the same frames."""
    tokenizer, reader = load_tokenizer(args.tokenizer), ShardReader(args.data)
    length = NUM_CONTEXT + max(HORIZONS)
    rows: list[Start] = []
    for split in SPLITS if args.split == "all" else (args.split,):
        if reader.keys(split):
            options = {"num_starts": args.starts, "max_episodes": args.episodes}
            rows += choose_starts(reader, split, num_steps=length, **options).rows
    episodes = {row.key: torch.from_numpy(reader.frames(row.key)) for row in rows}

    def windows(of_episodes: dict[str, Tensor]) -> Tensor:
        return torch.stack([of_episodes[r.key][r.first_step :][:length] for r in rows])

    clean, results = windows(episodes), []
    for noise in args.noise:
        seen = {key: noisy(frames, noise) for key, frames in episodes.items()}
        for margin in args.margins:
            tokenizer.config = replace(tokenizer.config, code_margin=margin)
            figures, tokens = over_episodes(tokenizer, episodes, seen)
            parts = from_starts(tokenizer, clean, windows(seen), windows(tokens))
            results.append({"noise": noise, "margin": margin, **figures, **parts})
    return {
        "tokenizer": args.tokenizer,
        "data": args.data,
        "num_episodes": len(episodes),
        "num_frames": sum(len(frames) for frames in episodes.values()),
        "num_starts": len(rows),
        "results": results,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True, help="run or checkpoint folder")
    parser.add_argument("--data", required=True, help="frame shards")
    parser.add_argument("--split", default="test", choices=(*SPLITS, "all"))
    parser.add_argument("--episodes", type=int, help="at most so many per split (default: all)")
    parser.add_argument("--starts", type=int, default=4, help="per episode (default: 4)")
    parser.add_argument("--margins", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.35, 0.5])
    parser.add_argument("--noise", type=int, nargs="+", default=[0, 1, 2], help="levels, of 255")
    print(json.dumps(measure(parser.parse_args(argv)), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
