"""IRIS, trained on recorded episodes for some minutes, beside tokenwm on the same starts; JSON.

::

    python tools/compare_iris.py --iris ../iris --data runs/quickstart/frames \\
        --ours runs/quickstart/world_model --minutes 14 --threads 2

IRIS (Micheli et al. 2023) is a checkout of github.com/eloialonso/iris, its networks, losses,
optimisers and settings as they are, but for: an L1 term in place of the perceptual loss, whose
weights would have to be downloaded; continuous actions as the nearest of ``--actions`` k-means
centres; tokens of a frame made once, not in every step of the world model; and, where asked,
smaller batches. Starts, contexts and actions are those of ``tokenwm evaluate``, and so are the
measures, of these pictures:

    iris_greedy, iris_sampled   imagined, the likeliest token or one drawn at temperature 1
    iris_anchored               iris_greedy with tokenwm's anchored decoding
    iris_reconstruction         the true frame through IRIS's tokenizer
    ours, ours_plain            --ours, imagined greedily, with anchored decoding and without
    persistence                 the last observed frame

``better`` is the one of greedy and sampled that is nearer to the truth: by PSNR over changed
pixels, mean of the horizons printed. Figures of the object (the task state read off pictures;
overlap and centre of Push-T's block as in tools/measure_block.py) are over starts in which it
moves; differences in the task state are over all starts. Minutes are of IRIS's training alone.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from iris_checkout import Checkout, load_checkout
from iris_data import ActionCodes, Recording
from iris_model import Iris, Stage
from iris_scores import Scores, Setting, summarize
from torch import Tensor

import tokenwm
from tokenwm.data.shards.manifest import MANIFEST_NAME
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.folder import open_folder, sha256_of
from tokenwm.heads.readout import FIELD, fit_readout, readout_for
from tokenwm.imagination.pixels import anchored
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import (
    RecordedStarts,
    choose_split,
    choose_starts,
    load_starts,
)
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.strict import plain
from tokenwm.tokenizer.frames import to_uint8

ROWS_AT_ONCE = 20


def pictures_of(
    iris: Iris,
    codes: ActionCodes,
    ours: TokenWorldModel | None,
    starts: RecordedStarts,
    numbers: slice,
) -> dict[str, Tensor]:
    """All pictures of some rows, ``(B, H, 1, height, width, 3)`` uint8 each, by name."""
    truth, observed = starts.future_frames, starts.frames[:, starts.num_context - 1]
    context = starts.frames[:, : starts.num_context, 0].movedim(-1, 2)  # (B, C, 3, H, W)
    tokens = iris.encode(context.flatten(0, 1)).reshape(*context.shape[:2], -1)
    taken = torch.from_numpy(codes.encode(starts.action[:, : starts.num_context - 1]))
    actions = torch.from_numpy(codes.encode(starts.future_actions)).to(iris.device)
    given = tokens, taken.to(iris.device), actions
    generator = torch.Generator(iris.device).manual_seed(numbers.start)
    imagined = {
        "iris_greedy": iris.imagine(*given),
        "iris_sampled": iris.imagine(*given, generator),
        "iris_reconstruction": iris.encode(truth[:, :, 0].flatten(0, 1).movedim(-1, 1)),
    }
    decoded = {}
    for name, found in imagined.items():
        pixels = iris.decode(found.reshape(-1, found.shape[-1])).movedim(1, -1).cpu()
        decoded[name] = pixels.reshape(truth.shape)
    before = iris.decode(tokens[:, -1]).movedim(1, -1).cpu()[:, None, None]
    decoded["iris_anchored"] = anchored(
        decoded["iris_greedy"],
        before.expand_as(truth),
        (observed.float() / 255.0)[:, None].expand_as(truth),
    )
    pictures = {name: to_uint8(pixels) for name, pixels in decoded.items()}
    pictures["persistence"] = observed[:, None].expand_as(truth)
    if ours is not None:
        rollout = ours.imagine(
            starts.context(ours),
            starts.future_actions,
            sampling=SamplingConfig(temperature=0.0),
            noise_streams=torch.arange(numbers.start, numbers.stop),
        )
        pictures["ours"] = ours.decode_frames(rollout).cpu()
        pictures["ours_plain"] = ours.decode_frames(rollout, use_anchor=False).cpu()
    return pictures


def measure(
    iris: Iris, codes: ActionCodes, ours: TokenWorldModel | None, setting: Setting
) -> Scores:
    """Imagine from all starts and score."""
    scores = Scores(setting)
    for first in range(0, len(setting.rows), ROWS_AT_ONCE):
        part = setting.rows[first : first + ROWS_AT_ONCE]
        numbers = slice(first, first + len(part))
        starts = load_starts(
            setting.reader, part, setting.num_context, setting.horizon, with_future_frames=True
        )
        pictures = pictures_of(iris, codes, ours, starts, numbers)
        observed = starts.frames[:, setting.num_context - 1]
        scores.add(numbers, pictures, starts.future_frames, observed)
    return scores


def choose(given: argparse.Namespace, ours: TokenWorldModel | None) -> Setting:
    """The dataset, its starts as ``tokenwm evaluate`` chooses them, and the readout."""
    reader = ShardReader(given.data)
    manifest = reader.manifest
    if manifest.kind != "frames" or len(manifest.cameras) != 1:
        sys.exit(f"{given.data}: give frame shards of one camera; IRIS has one picture a step")
    split = choose_split(manifest, given.split)
    rows = choose_starts(
        reader, split, num_steps=given.context + given.horizon, num_starts=given.starts
    ).rows
    readout = None
    if FIELD in manifest.features:
        readout = fit_readout(reader)[0] if ours is None else readout_for(ours, reader)
    return Setting(
        reader=reader,
        split=split,
        rows=rows,
        num_context=given.context,
        horizon=given.horizon,
        readout=readout,
    )


def train(given: argparse.Namespace, iris: Iris, recording: Recording) -> dict[str, Stage]:
    """Train IRIS's two stages, one after the other, in a share of the time each."""
    seconds = given.seconds or 60.0 * given.minutes
    began = time.monotonic()
    print(f"training IRIS's tokenizer for {given.tokenizer_share * seconds:.0f} s", file=sys.stderr)
    tokenizer = iris.train_tokenizer(
        recording, given.tokenizer_share * seconds, given.tokenizer_batch, given.seed
    )
    left = seconds - (time.monotonic() - began)
    print(f"{tokenizer.steps} steps; its world model for {left:.0f} s", file=sys.stderr)
    world_model = iris.train_world_model(recording, left, given.world_model_batch, given.seed)
    print(f"{world_model.steps} steps; measuring", file=sys.stderr)
    return {"tokenizer": tokenizer, "world_model": world_model}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    from tokenwm.cli.verbs.quickstart import TOKENIZER_SHARE  # imports Lightning

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iris", type=Path, required=True, help="checkout of IRIS")
    parser.add_argument("--data", type=Path, required=True, help="frames of tokenwm prepare")
    parser.add_argument("--ours", type=Path, help="a model of tokenwm, to compare with")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, of both stages")
    parser.add_argument("--seconds", type=float, help="in place of --minutes")
    parser.add_argument(
        "--tokenizer-share", type=float, default=TOKENIZER_SHARE, help="of the time (quickstart's)"
    )
    parser.add_argument("--tokenizer-batch", type=int, help="frames a step (default: IRIS's)")
    parser.add_argument("--world-model-batch", type=int, help="segments a step (default: IRIS's)")
    parser.add_argument("--actions", type=int, default=512, help="centres of continuous actions")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test")
    parser.add_argument("--context", type=int, default=4)
    parser.add_argument("--horizon", type=int, default=20)
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 5, 10, 20], help="to print")
    parser.add_argument("--starts", type=int, default=4, help="per episode")
    given = parser.parse_args(argv)
    given.horizons = sorted(h for h in set(given.horizons) if 1 <= h <= given.horizon)
    if not given.horizons:
        parser.error(f"--horizons: give some in [1, {given.horizon}]")
    return given


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, and print the figures."""
    given = arguments(argv)
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    checkout = load_checkout(given.iris)
    ours = None if given.ours is None else tokenwm.load(given.ours, device)
    setting = choose(given, ours)
    torch.manual_seed(given.seed)
    codes = ActionCodes(setting.reader, given.actions, given.seed)
    iris = Iris(checkout, codes.num_actions, device)
    if given.context >= iris.window:
        sys.exit(f"--context {given.context}: IRIS's window is {iris.window} steps")
    recording = Recording(setting.reader, codes)
    if recording.frames.shape[2:] != (iris.resolution, iris.resolution):
        sides = "×".join(map(str, recording.frames.shape[2:]))
        sys.exit(f"{given.data} has frames of {sides}; IRIS's are {iris.resolution} a side")
    stages = train(given, iris, recording)
    figures = summarize(measure(iris, codes, ours, setting), given.horizons)
    about = report(given, checkout, setting, iris, recording, stages)
    about["iris"]["actions"] = codes.describe()
    about["ours"] = None if ours is None else _about(ours, given.ours)
    print(json.dumps(plain({**about, **figures}), indent=1))


def report(
    given: argparse.Namespace,
    checkout: Checkout,
    setting: Setting,
    iris: Iris,
    recording: Recording,
    stages: dict[str, Stage],
) -> dict[str, Any]:
    """All that the figures depend on, for the record."""
    manifest, device = setting.reader.manifest, iris.device
    return {
        "what": "IRIS beside tokenwm",
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "tokenwm": tokenwm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "iris_sha256": checkout.digest,
        },
        "data": {
            "name": manifest.name,
            "manifest_sha256": sha256_of(open_folder(setting.reader.root), MANIFEST_NAME),
            "steps": len(recording.action),
            "episodes": len(recording.length),
            "control_rate": manifest.control_rate,
        },
        "starts": {
            "split": setting.split,
            "starts": len(setting.rows),
            "episodes": len(set(setting.keys)),
            "context": setting.num_context,
            "horizon": setting.horizon,
        },
        "iris": {
            **stages,
            "seed": given.seed,
            "parameters": {
                name: sum(weights.numel() for weights in module.parameters())
                for name, module in (("tokenizer", iris.tokenizer), ("world", iris.world_model))
            },
            "perceptual_loss": "an L1 term in its place",
        },
    }


def _about(model: TokenWorldModel, folder: Path) -> dict[str, Any]:
    """What our model came from, with the steps of its stages."""
    kept = ("steps", "batch_size", "windows_seen", "tokenwm_version", "code_revision")
    origins = {"tokenizer": model.tokenizer_provenance, "world_model": model.provenance}
    return {
        "model": str(folder),
        "weights_sha256": model.provenance.get("weights_sha256"),
        **{stage: {name: origin.get(name) for name in kept} for stage, origin in origins.items()},
    }


if __name__ == "__main__":
    main()
