"""Time imagination: engines side by side in one process, with the theoretical floor beside them.

    python tools/bench_imagination.py --model runs/iris/world_model --data runs/iris/frames

Contexts and actions come from held-out episodes; without --model and --data, from a model of IRIS's
sizes with random weights, which says what a pass costs but not how often drafts are accepted. A
repetition times all engines one after another, so that whatever else the machine does hits all
alike; the best and the median over repetitions are given, ratios are of medians. Passes are
those of the row that needs most (``tokenwm evaluate`` counts each row's own).

Engines:
    plain_loop        the straightforward loop of IRIS-type code in float32: keys and values in
                      preallocated memory, one token a pass, multinomial
    iris              the loop and the network of IRIS itself at the same sizes, window nearly full;
                      only with --iris, a checkout of github.com/eloialonso/iris
    no_cache          the whole window again for every token (batch 1 only)
    generate          ``generate`` of transformers with a static cache: a Llama of the same sizes
                      with random weights; only if transformers is installed
    sequential        tokenwm, one pass a token, float32
    speculative       tokenwm, drafts verified in one pass (tokenwm/imagination/speculative.py)
    passes_1, _2      tokenwm, not exact: so many passes a frame (imagination/approximate.py)
    …_bf16            the same in bfloat16
    …_eager           the same without CUDA graphs (on a GPU)
    …_compiled        the same through torch.compile (--compile)
    …_pixels          the same, and the frame of every step decoded
    …_pixels_anchored the same as ``decode_frames`` does it: anchored at the last observed frame
    closed_loop_…     the same, but every action is known only after the step before it
    candidates_…      --candidates action sequences of --candidate-steps steps from one context, the
                      reading of the context included: what a planner asks for at every step
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imagination_baselines import (
    Decoded,
    Engine,
    generate_seconds,
    iris_engine,
    no_cache,
    now,
    plain_loop,
)
from torch import Tensor

from tokenwm.allocator import keep_freed_memory
from tokenwm.checkpoint import load_world_model
from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.decode import decode_steps, prefill
from tokenwm.imagination.passes import compile_passes
from tokenwm.imagination.pixels import decode_pixels, frozen_decoder
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import best_span, decode_steps_speculatively
from tokenwm.imagination.starts import Start, choose_split, choose_starts, load_starts
from tokenwm.imagination.state import DecodeState
from tokenwm.imagination.token_world_model import TokenWorldModel, load
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.throughput import measured_peak_flops
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.frozen import freeze
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

SAMPLING = SamplingConfig()


# --- tokenwm --------------------------------------------------------------------------------------


_spare: dict[tuple[WorldModel, int, int], KVCache] = {}


def read(model: WorldModel, context: Tokens, num_steps: int) -> DecodeState:
    """Read a context as ``TokenWorldModel.imagine`` does: CUDA graphs stay with their cache."""
    key = (model, len(context.frame), num_steps)
    state = prefill(model, context, num_steps=num_steps, cache=_spare.get(key))
    if model.graph_passes:
        _spare[key] = state.cache
    return state


def candidates(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
    """All actions from the first context."""
    num_copies, num_steps = actions.shape[:2]
    spare = _spare.get((model, -num_copies, num_steps))
    first = context.rows([0])
    state = prefill(model, first, num_steps=0, cache=None if spare is None else spare.past)
    state = state.fork(num_copies, num_steps, spare)
    if model.graph_passes:
        _spare[(model, -num_copies, num_steps)] = state.cache
    _, decoded = decode_steps_speculatively(model, state, actions, SAMPLING)
    positions = decoded.num_passes * best_span(model, num_copies)
    return Decoded(frame=decoded.frame_tokens, passes=decoded.num_passes, positions=positions)


def sequential(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
    state = read(model, context, actions.shape[1])
    _, decoded = decode_steps(model, state, actions, SAMPLING)
    positions = actions.shape[1] * model.layout.positions_per_step
    return Decoded(frame=decoded.frame_tokens, passes=decoded.num_passes, positions=positions)


def speculative(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
    state = read(model, context, actions.shape[1])
    _, decoded = decode_steps_speculatively(model, state, actions, SAMPLING)
    positions = decoded.num_passes * best_span(model, len(actions))
    return Decoded(frame=decoded.frame_tokens, passes=decoded.num_passes, positions=positions)


def in_passes(num_passes: int) -> Engine:
    approximation = Approximation(num_passes=num_passes)

    def decode(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
        state = read(model, context, actions.shape[1])
        _, decoded = decode_steps_approximately(model, state, actions, SAMPLING, approximation)
        positions = decoded.num_passes * model.layout.positions_per_step
        return Decoded(frame=decoded.frame_tokens, passes=decoded.num_passes, positions=positions)

    return decode


def closed_loop(engine: Callable[..., Any]) -> Engine:
    def decode(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
        state, frames, passes = read(model, context, actions.shape[1]), [], 0
        for step in range(actions.shape[1]):
            state, decoded = engine(model, state, actions[:, step : step + 1], SAMPLING)
            frames.append(decoded.frame_tokens)
            passes += decoded.num_passes
        positions = actions.shape[1] * model.layout.positions_per_step
        return Decoded(frame=torch.cat(frames, dim=1), passes=passes, positions=positions)

    return decode


# --- what the machine can do ----------------------------------------------------------------------


def read_bandwidth(num_bytes: int, device: torch.device) -> float:
    """Bytes per second when a buffer of this size (a large one on a GPU) is read repeatedly."""
    least = 1 << 30 if device.type == "cuda" else 1 << 16
    buffer = torch.ones(max(num_bytes, least) // 4, device=device)
    times = []
    for _ in range(20):
        start = now(device)
        buffer.sum()
        times.append(now(device) - start)
    return buffer.numel() * 4 / min(times)


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU since the last call, on a CPU of the process so far."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def floor_seconds(model: WorldModel, batch: int, decoded: Decoded) -> float:
    """Least time of what an engine did: weights and cache read once a pass, or the operations."""
    config, device = model.config.transformer, model.slot_embedding.device
    dtype = model.transformer.dtype
    weights = sum(p.numel() for p in model.transformer.parameters() if p.ndim > 1)
    cells = config.window * model.layout.positions_per_step
    cache = 2 * config.num_layers * cells * config.kv_heads * config.head_dim
    num_bytes = (weights + batch * cache) * torch.empty(0, dtype=dtype).element_size()
    attention = 2 * config.num_layers * cells * config.dim
    head = model.vocabulary.codebook_size * config.dim
    operations = 2 * batch * decoded.positions * (weights + attention + head)
    return max(
        decoded.passes * num_bytes / read_bandwidth(num_bytes, device),
        operations / measured_peak_flops(device, dtype),
    )


# --- the benchmark --------------------------------------------------------------------------------


SIZES = {
    "small": TransformerConfig(dim=128, num_layers=6, num_heads=2, window=4),
    "iris": TransformerConfig(dim=256, num_layers=10, num_heads=4, window=20),
    "base": TransformerConfig(dim=768, num_layers=12, num_heads=12, window=16),
}


def random_model(size: str, num_frame_tokens: int, device: torch.device) -> WorldModel:
    """Random weights and a copy prior of 0.85."""
    side = round(num_frame_tokens**0.5)
    edges = np.linspace(-1.0, 1.0, 257)[None].repeat(2, axis=0)
    vocabulary = Vocabulary(
        codebook_size=512,
        code_levels=(8, 8, 8),
        num_cameras=1,
        grid=(side, num_frame_tokens // side),
        action=BinTokenizer(edges=edges),
        state=None,
        has_reward=True,
        tokenizer_hash="none",
    )
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(transformer=SIZES[size]), vocabulary).to(device)


def recorded_rows(
    model: TokenWorldModel, data: Path, batch: int, num_context: int, horizon: int
) -> tuple[Tokens, Tensor]:
    """Contexts and the actions that followed, from held-out episodes."""
    reader = ShardReader(data)
    split = choose_split(reader.manifest, "test")
    num_steps = num_context + horizon
    starts = choose_starts(reader, split, num_steps=num_steps, num_starts=4).rows
    rows: list[Start] = [starts[index % len(starts)] for index in range(batch)]
    recorded = load_starts(reader, rows, num_context, horizon)
    context = model.context(
        recorded.frames[:, :num_context], recorded.action[:, : num_context - 1], None
    )
    return context.tokens, model.encode_actions(recorded.future_actions)


def random_rows(
    model: WorldModel, batch: int, num_context: int, horizon: int
) -> tuple[Tokens, Tensor]:
    device, vocabulary = model.slot_embedding.device, model.vocabulary
    shape = (batch, 1, model.layout.num_frame_tokens)
    frame = torch.randint(vocabulary.codebook_size, shape, device=device)
    shape = (batch, num_context + horizon, vocabulary.action.num_dimensions)
    action = torch.randint(vocabulary.action.num_values, shape, device=device)
    return Tokens(frame.repeat(1, num_context, 1), None, action[:, :num_context]), action[
        :, num_context:
    ]


def measure_candidates(
    args: argparse.Namespace, model: WorldModel, whole: TokenWorldModel | None
) -> list[dict[str, Any]]:
    """Many action sequences from one context, everything included."""
    num_context, device = model.config.transformer.window, model.slot_embedding.device
    sizes = (args.candidates, num_context, args.candidate_steps)
    if whole is None:
        context, actions = random_rows(model, *sizes)
    else:
        context, actions = recorded_rows(whole, args.data, *sizes)
    owners = {"candidates_bf16": freeze(model, torch.bfloat16)}
    if args.compile:
        owners["candidates_bf16_compiled"] = freeze(model, torch.bfloat16)
        compile_passes(owners["candidates_bf16_compiled"])
    results = []
    for name, owner in owners.items():
        seconds = []
        for _ in range(args.repetitions + 1):  # the first warms up
            start = now(device)
            decoded = candidates(owner, context, actions)
            seconds.append(now(device) - start)
        median = statistics.median(seconds[1:])
        results.append(
            {
                "engine": name,
                "candidates": args.candidates,
                "steps": args.candidate_steps,
                "ms": 1e3 * median,
                "per_second": 1.0 / median,
                "steps_per_second": args.candidates * args.candidate_steps / median,
                "passes_per_step": decoded.passes / args.candidate_steps,
            }
        )
    return results


def profiled(model: WorldModel, batch: int, horizon: int) -> list[dict[str, Any]]:
    """What one call of the speculative engine spends its time on, most expensive first."""
    half, on_cuda = freeze(model, torch.bfloat16), model.slot_embedding.device.type == "cuda"
    context, actions = random_rows(model, batch, model.config.transformer.window, horizon)
    speculative(half, context, actions)  # warms up
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        speculative(half, context, actions)

    def own_ms(event: Any) -> float:
        return float(event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e3

    events = sorted(profiler.key_averages(), key=own_ms, reverse=True)
    return [
        {"operation": event.key, "calls": event.count, "ms": own_ms(event)} for event in events[:20]
    ]


def measure(
    args: argparse.Namespace, model: WorldModel, whole: TokenWorldModel | None, batch: int
) -> list[dict[str, Any]]:
    """All engines at one batch size."""
    num_context, device = model.config.transformer.window, model.slot_embedding.device
    if whole is None:
        context, actions = random_rows(model, batch, num_context, args.horizon)
    else:
        context, actions = recorded_rows(whole, args.data, batch, num_context, args.horizon)
    exact, half = freeze(model), freeze(model, torch.bfloat16)
    engines: dict[str, tuple[Engine, WorldModel]] = {
        "plain_loop": (plain_loop, model),
        "sequential": (sequential, exact),
        "speculative": (speculative, exact),
        "sequential_bf16": (sequential, half),
        "speculative_bf16": (speculative, half),
        "closed_loop_sequential_bf16": (closed_loop(decode_steps), half),
        "closed_loop_speculative_bf16": (closed_loop(decode_steps_speculatively), half),
        "passes_2_bf16": (in_passes(2), half),
    }
    if args.iris is not None:
        engines["iris"] = (iris_engine(args.iris, model), model)
    if device.type == "cuda":
        eager = freeze(model, torch.bfloat16)
        eager.graph_passes = False
        engines["sequential_bf16_eager"] = (sequential, eager)
        engines["speculative_bf16_eager"] = (speculative, eager)
    if model.draft_head is not None:
        engines["passes_1_bf16"] = (in_passes(1), half)
    if batch == 1:
        engines["no_cache"] = (no_cache, model)
    if args.compile:
        compiled = freeze(model, torch.bfloat16)
        compile_passes(compiled)
        engines["sequential_bf16_compiled"] = (sequential, compiled)
        engines["speculative_bf16_compiled"] = (speculative, compiled)

    def with_pixels(
        tokenizer: FrameTokenizer, is_anchored: bool, model: WorldModel, *rows: Any
    ) -> Decoded:
        decoded, last = speculative(model, *rows), context.frame[:, -1]
        anchor = observed if is_anchored else None
        decode_pixels(tokenizer, decoded.frame, last, anchor, frame_decoder)
        return decoded

    if whole is not None:
        frame_decoder = frozen_decoder(whole.tokenizer, torch.bfloat16)
        observed = whole.tokenizer.decode_frames(context.frame[:, -1])  # takes as long as real ones
        for name, is_anchored in (("pixels", False), ("pixels_anchored", True)):
            look = partial(with_pixels, whole.tokenizer, is_anchored)
            engines[f"speculative_bf16_{name}"] = (look, half)
    if args.engines:
        engines = {name: engine for name, engine in engines.items() if name in args.engines}

    prefills: dict[WorldModel, list[float]] = {owner: [] for _, owner in engines.values()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    decoded: dict[str, Decoded] = {}
    for _ in range(args.repetitions + 1):  # the first warms up
        for owner, reading in prefills.items():
            start = now(device)
            read(owner, context, args.horizon)
            reading.append(now(device) - start)
        for name, (engine, owner) in engines.items():
            start = now(device)
            decoded[name] = engine(owner, context, actions)
            taken, own = now(device) - start, decoded[name].reading
            times[name].append(taken - (prefills[owner][-1] if own is None else own))
    results: list[dict[str, Any]] = []
    for name, (_, owner) in engines.items():
        horizon = decoded[name].frame.shape[1]
        seconds = [max(taken, 1e-9) / horizon for taken in times[name][1:]]
        floor = floor_seconds(owner, batch, decoded[name]) / horizon
        median = statistics.median(seconds)
        if median <= 1e-9:
            reason = "no longer than the reading of the context varies: use a longer --horizon"
            results.append({"engine": name, "batch": batch, "not_measured": reason})
            continue
        results.append(
            {
                "engine": name,
                "batch": batch,
                "ms_per_step": 1e3 * median,
                "ms_per_step_best": 1e3 * min(seconds),
                "steps_per_second": batch / median,
                "tokens_per_second": batch * model.layout.num_frame_tokens / median,
                "passes_per_step": decoded[name].passes / horizon,
                "tokens_per_pass": model.layout.num_frame_tokens * horizon / decoded[name].passes,
                "floor_ms_per_step": 1e3 * floor,
                "share_of_floor": floor / median,
            }
        )
    seconds_of_generate = generate_seconds(model, batch, 2) if args.generate else None
    if seconds_of_generate is not None:
        results.append(
            {
                "engine": "generate",
                "batch": batch,
                "ms_per_step": 1e3 * seconds_of_generate,
                "steps_per_second": batch / seconds_of_generate,
            }
        )
    for baseline in ("plain_loop", "iris"):
        base = next((r for r in results if r["engine"] == baseline), {}).get("ms_per_step")
        for result in results:
            if base is not None and "ms_per_step" in result:
                result[f"times_{baseline}"] = base / result["ms_per_step"]
    for name in engines:
        sequential_name = name.replace("speculative", "sequential")
        if name == sequential_name or sequential_name not in engines:
            continue
        same = decoded[name].frame == decoded[sequential_name].frame
        results.append(
            {
                "engine": name,
                "batch": batch,
                "tokens_equal_to_sequential": float(same.float().mean()),
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, help="world model to time; random weights if left out"
    )
    parser.add_argument("--data", type=Path, help="frame shards with held-out episodes")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--batch-sizes", type=int, nargs="+")
    parser.add_argument("--horizon", type=int, default=16, help="imagined steps")
    parser.add_argument("--size", choices=SIZES, default="iris", help="of the random model")
    parser.add_argument("--num-frame-tokens", type=int, default=16, help="of the random model")
    parser.add_argument("--engines", nargs="+", help="only these; see the top of this file")
    parser.add_argument("--iris", type=Path, help="a checkout of IRIS, to time it beside ours")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="time compiled engines too")
    parser.add_argument("--candidates", type=int, default=0, help="plan with so many; 0: do not")
    parser.add_argument("--candidate-steps", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="say where the time goes, too")
    parser.add_argument("--generate", action="store_true", help="time transformers' generate too")
    args = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = None if args.model is None else load(args.model, device)
    if whole is None:
        model = random_model(args.size, args.num_frame_tokens, device)
    else:
        # Not the one that is frozen for inference: baselines take the model as it was trained.
        model = load_world_model(args.model, device).world_model
    if model.state_head is not None or (whole is not None and args.data is None):
        sys.exit("give --model a model without state, and --data with it")
    sizes = args.batch_sizes or ([1, 8, 64] if device.type == "cpu" else [1, 8, 64, 512, 1024])
    config = model.config.transformer
    results: list[dict[str, Any]] = []
    memory: dict[int, int] = {}
    profiles: dict[int, list[dict[str, Any]]] = {}
    report = {
        "what": "imagination",
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": str(args.model or "random weights"),
        "sizes": {
            "layers": config.num_layers,
            "width": config.dim,
            "heads": config.num_heads,
            "window": config.window,
            "tokens_per_frame": model.layout.num_frame_tokens,
            "codes": model.vocabulary.codebook_size,
        },
        "horizon": args.horizon,
        "peak_memory_bytes": memory,
        "results": results,
        "profile": profiles,
    }

    def save() -> None:  # what is measured is not lost if the next thing fails
        if args.json:
            args.json.write_text(json.dumps(report, indent=2) + "\n")

    with torch.inference_mode():
        model = model.eval()
        for batch in sizes:
            results += measure(args, model, whole, batch)
            memory[batch] = peak_memory(device)
            _spare.clear()
            save()
        if args.candidates:
            results += measure_candidates(args, model, whole)
            save()
        for batch in sizes if args.profile else ():
            profiles[batch] = profiled(model, batch, args.horizon)
            save()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
