"""Time a plan against the same imagination alone, side by side in one process; prints JSON.

    python tools/bench_planning.py --model runs/quickstart/world_model --data runs/quickstart/frames

A plan is made towards the last recorded frame, from a held-out start. Then what it imagined, the
same candidates in the same rounds, is imagined without the planner: no draws, no scores. The two
take turns, so that whatever else the machine does hits both alike; the best and the median over
repetitions are given, the ratio is of medians. The floor is the least time in which the machine
could do those passes (tools/bench_imagination.py).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_imagination import floor_seconds
from imagination_baselines import Decoded, now
from torch import Tensor

import tokenwm
from tokenwm.allocator import keep_freed_memory
from tokenwm.control.planners.base import roll_candidates
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.speculative import best_span
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world_state import WorldState

PLANNERS = {"cem": tokenwm.CEM, "icem": tokenwm.ICEM, "mppi": tokenwm.MPPI}


class Noting:
    """A world that notes what is tried in it."""

    def __init__(self, world: TokenWorldModel) -> None:
        self.world = world
        self.tried: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def roll(self, state: WorldState, actions: Tensor, sampling: Any = None) -> Any:
        self.tried.append(actions)
        return self.world.roll(state, actions, sampling)


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "best": min(seconds)}


def floor(model: TokenWorldModel, rollouts: list[Rollout]) -> float:
    """Least seconds of the passes that were made."""
    least = 0.0
    for rollout in rollouts:
        rows, passes = len(rollout.actions), rollout.num_passes
        positions = passes * best_span(model.world_model, rows)
        decoded = Decoded(frame=rollout.frame_tokens, passes=passes, positions=positions)
        least += floor_seconds(model.world_model, rows, decoded)
    return least


def measure(args: argparse.Namespace, model: TokenWorldModel) -> dict[str, Any]:
    starts = tokenwm.starts(args.data, count=1, context=args.context, horizon=args.steps)
    state = model.start(starts.context(model))
    objective = tokenwm.GoalImage(model, starts.future_frames[0, -1])
    planner = PLANNERS[args.planner](
        horizon=args.steps,
        num_candidates=args.candidates,
        num_rounds=args.rounds,
        num_elites=max(1, args.candidates // 8),
    )
    noting: Any = Noting(model)
    plan = planner.plan(noting, state, objective)

    def alone() -> list[Rollout]:
        return [roll_candidates(model, state, actions) for actions in noting.tried]

    rollouts = alone()  # warms up, as the plan before did
    of_plans, of_imagination = [], []
    for _ in range(args.repetitions):
        begin = now(model.device)
        planner.plan(model, state, objective)
        between = now(model.device)
        alone()
        of_plans.append(between - begin)
        of_imagination.append(now(model.device) - between)
    least = floor(model, rollouts)
    ratio = statistics.median(of_plans) / statistics.median(of_imagination)
    return {
        "what": "planning",
        "date": time.strftime("%Y-%m-%d"),
        "model": str(args.model),
        "planner": args.planner,
        "candidates": args.candidates,
        "steps": args.steps,
        "rounds": plan.num_rounds,
        "rollouts": plan.num_rollouts,
        "tokens_per_frame": model.vocabulary.tokens_per_frame,
        "actions_per_step": model.actions_per_step,
        "device": str(model.device),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repetitions": args.repetitions,
        "plan_seconds": summary(of_plans),
        "imagination_seconds": summary(of_imagination),
        "plan_by_imagination": ratio,
        "passes_per_step": sum(r.num_passes for r in rollouts) / (len(rollouts) * args.steps),
        "floor_seconds": least,
        "plan_by_floor": statistics.median(of_plans) / least,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="trained world model")
    parser.add_argument("--data", type=Path, required=True, help="frame shards with test episodes")
    parser.add_argument("--planner", choices=sorted(PLANNERS), default="cem")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="horizon, steps of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, default=4, help="observed steps to start from")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    keep_freed_memory()
    model = tokenwm.load(args.model, args.device, dtype=getattr(torch, args.dtype))
    text = json.dumps(measure(args, model), indent=2) + "\n"
    if args.json:
        args.json.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
