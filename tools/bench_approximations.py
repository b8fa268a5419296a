"""What fewer passes per frame cost in quality and gain in time, on held-out episodes; prints JSON.

    python tools/bench_approximations.py --model runs/iris --data data/frames --plot curves.png

Every way of decoding imagines the same starts under the same noise. Quality beside persistence and
the tokenizer's reconstruction: PSNR against what was recorded, by horizon; the share of tokens that
equal exact sampling's; and how surprised the exact model is by what was drawn (nats per token; its
own samples set the scale, frames that do not fit together surprise it more).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from tokenwm import load
from tokenwm.allocator import keep_freed_memory
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import psnr_from_mse
from tokenwm.evaluation.pixels import squared_error
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.context import Context
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import choose_split, choose_starts, load_starts
from tokenwm.imagination.token_world_model import Rollout, TokenWorldModel
from tokenwm.pages.plot_style import CYCLE, DPI, FAINT, INK, to_png
from tokenwm.sequence.tokens import Tokens


def ways_of(model: TokenWorldModel) -> dict[str, tuple[Approximation | None, SamplingConfig]]:
    """Name → how to decode. The first is what the others are compared with."""
    sampling = SamplingConfig()
    least = 2 if model.world_model.draft_head is None else 1
    ways: dict[str, tuple[Approximation | None, SamplingConfig]] = {
        "exact": (None, sampling),
        "greedy": (None, SamplingConfig(temperature=0.0)),
    }
    for count in sorted({least, 2, 3, 4, 8}):
        ways[f"{count} passes"] = (Approximation(num_passes=count), sampling)
    return ways


def surprise(model: TokenWorldModel, context: Context, rollout: Rollout, actions: Tensor) -> float:
    """Mean nats per token of imagined frames under the exact model, teacher-forced."""
    seen, num_context = context.tokens, context.tokens.frame.shape[1]
    states = None
    if seen.state is not None and rollout.state_tokens is not None:
        states = torch.cat([seen.state, rollout.state_tokens], dim=1)
    whole = Tokens(
        torch.cat([seen.frame, rollout.frame_tokens], dim=1),
        states,
        torch.cat([seen.action[:, :-1], actions, actions[:, -1:]], dim=1),
    )
    return float(model.score(Context(tokens=whole))[:, num_context - 1 :].mean())


def by_horizon(pictures: Tensor, truth: Tensor, horizons: list[int]) -> dict[int, float]:
    """Mean PSNR, dB, of ``(B, H, ...)`` pictures at some horizons, counted from 1."""
    return {
        h: float(
            psnr_from_mse(squared_error(pictures[:, h - 1], truth[:, h - 1]).cpu().numpy()).mean()
        )
        for h in horizons
    }


def measure(args: argparse.Namespace, model: TokenWorldModel) -> dict[str, Any]:
    """All ways of decoding, from the same starts."""
    reader = ShardReader(args.data)
    num_context = model.world_model.config.transformer.window
    num_steps = num_context + args.horizon
    starts = choose_starts(
        reader, choose_split(reader.manifest, "test"), num_steps=num_steps, num_starts=4
    ).rows
    rows = [starts[index % len(starts)] for index in range(min(args.rows, len(starts)))]
    recorded = load_starts(reader, rows, num_context, args.horizon, with_future_frames=True)
    context = recorded.context(model)
    actions = recorded.future_actions
    action_tokens = model.encode_actions(actions)
    frames = recorded.frames.to(model.device)
    truth = frames[:, num_context:]
    horizons = [h for h in (1, 5, 10, 20) if h <= args.horizon]
    last = frames[:, num_context - 1 : num_context]
    rebuilt = model.decode_tokens(model.tokenizer.encode_frames(truth))
    results: list[dict[str, Any]] = [
        {"way": "persistence", "psnr": by_horizon(last.expand_as(truth), truth, horizons)},
        {"way": "reconstruction", "psnr": by_horizon(rebuilt, truth, horizons)},
    ]
    exact: Tensor | None = None
    for name, (approximation, sampling) in ways_of(model).items():
        model.approximation = approximation
        times = []
        for _ in range(args.repetitions):
            start = time.perf_counter()
            rollout = model.imagine(context, actions, sampling=sampling)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        tokens = rollout.frame_tokens
        exact = tokens if exact is None else exact
        pictures = model.decode_frames(rollout)
        results.append(
            {
                "way": name,
                "passes_per_step": rollout.num_passes / args.horizon,
                "ms_per_step": 1e3 * statistics.median(times) / args.horizon,
                "psnr": by_horizon(pictures, truth, horizons),
                "tokens_equal_to_exact": float((tokens == exact).float().mean()),
                "surprise_of_the_exact_model": surprise(model, context, rollout, action_tokens),
            }
        )
    return {
        "what": "approximations",
        "date": time.strftime("%Y-%m-%d"),
        "model": str(args.model),
        "draft_layers": model.world_model.config.draft_layers,
        "dtype": args.dtype,
        "rows": len(rows),
        "context_steps": num_context,
        "horizon": args.horizon,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "results": results,
    }


def draw(report: Mapping[str, Any]) -> bytes:
    """Quality against passes a step: PSNR by horizon, and surprise. A PNG."""
    results = {result["way"]: result for result in report["results"]}
    curve = [result for way, result in results.items() if way.endswith(" passes")]
    curve.sort(key=lambda result: float(result["passes_per_step"]))
    rebuilt = list(results["reconstruction"]["psnr"].values())
    most = max(result.get("passes_per_step", 0.0) for result in results.values())
    figure = Figure(figsize=(10.4, 4.6), dpi=DPI)
    FigureCanvasAgg(figure)
    quality, surprised = figure.subplots(1, 2, width_ratios=(1.35, 1))
    quality.axhspan(min(rebuilt), max(rebuilt), color="#EBEBEB", zorder=0)
    quality.text(most, max(rebuilt) + 0.1, "reconstruction", color=FAINT, fontsize=9, ha="right")
    for colour, (horizon, still) in zip(
        CYCLE[0::2] + CYCLE[1:2], results["persistence"]["psnr"].items(), strict=False
    ):
        quality.axhline(still, color=colour, linestyle=(0, (1, 2)), linewidth=1.2)
        draw_curve(quality, results, curve, colour, partial(psnr_at, horizon))
        at = curve[-1]["psnr"][horizon]
        quality.annotate(
            f"horizon {horizon}", (most + 0.4, at), xytext=(4, 0), textcoords="offset points",
            color=colour, fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip
    quality.set_title(
        "PSNR on held-out episodes, dB (dotted: persistence)", fontsize=10, loc="left"
    )
    draw_curve(surprised, results, curve, CYCLE[0], itemgetter("surprise_of_the_exact_model"))
    surprised.set_ylim(bottom=0.0)
    surprised.set_title("surprise of the exact model, nats a token", fontsize=10, loc="left")
    for axes in (quality, surprised):
        axes.set(xlim=(0.6, most + 0.4), xticks=range(1, int(most) + 1))
        axes.set_xlabel("passes a step", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=9)
    surprised.legend(frameon=False, fontsize=9, labelcolor=INK)
    figure.tight_layout(w_pad=3.0)
    return to_png(figure)


def psnr_at(horizon: str, result: Mapping[str, Any]) -> float:
    return float(result["psnr"][horizon])


def draw_curve(
    axes: Any,
    results: Mapping[str, Any],
    curve: Sequence[Any],
    colour: str,
    value: Callable[[Any], float],
) -> None:
    """A measure against a fixed number of passes, and the marks of the other ways beside it."""
    axes.plot(
        [result["passes_per_step"] for result in curve],
        [value(result) for result in curve],
        color=colour, marker="o", markersize=4, linewidth=1.6, label="a fixed number of passes",
    )  # fmt: skip
    marks = {"exact": ("exact", "D"), "greedy": ("exact, greedy", "^")}
    for way, (label, marker) in marks.items():
        is_first = not any(label == text.get_label() for text in axes.collections)
        axes.scatter(
            [results[way]["passes_per_step"]], [value(results[way])],
            marker=marker, s=46, facecolor="white", edgecolor=colour, linewidth=1.5, zorder=3,
            label=label if is_first else "_",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="trained world model")
    parser.add_argument("--data", type=Path, help="frame shards with test episodes")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plot", type=Path, help="where to draw them, a PNG file")
    parser.add_argument("--figures", type=Path, help="what --json wrote: draw it, measure nothing")
    parser.add_argument("--rows", type=int, default=64, help="starts to imagine from")
    parser.add_argument("--horizon", type=int, default=20, help="imagined steps")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    if args.figures:
        text = args.figures.read_text()
    elif args.model and args.data:
        keep_freed_memory()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        report = measure(args, load(args.model, device, dtype=getattr(torch, args.dtype)))
        text = json.dumps(report, indent=2) + "\n"
    else:
        parser.error("give --model and --data, or --figures")
    if args.json:
        args.json.write_text(text)
    if args.plot:
        args.plot.write_bytes(draw(json.loads(text)))
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
