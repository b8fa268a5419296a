"""``tokenwm imagine --instead`` on Push-T against the simulator, as JSON.

::

    python tools/instead_push.py MODEL DATA --cases 150 --horizon 4     # chunks of 5: 2 seconds

A case is a step of a held-out episode and another course of action from there on: the pusher's
goals moved by 15 % of their range in x or y, or what was done in another held-out episode. The
simulator is brought to the step by seed and recorded actions, and takes the other actions: how the
block's pose at the end then differs from the recorded one is the true change. The model says by
several pairs of futures with the same luck, of which its readout reads the pose.

Counted is how often the model's mean change has the sign of the true one, for each of x, y and
angle where the true change is beyond ``--moved`` px or ``--turned`` degrees: in all cases, and in
those where the model is not in doubt, by how many of its futures agree on the sign or by its
learned doubt (the half of the cases with less of it). Beside it stands a rule that knows no block:
it goes where the pusher's goals go. Rates have Wilson's interval, and one of 2,000 draws of whole
episodes, since cases of one episode are not independent.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from drawn import interval, mean_of
from numpy.typing import NDArray

from tokenwm.data.readers.simulator.environments import decode_action
from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.readers.simulator.task_states import TASK_STATE
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import wilson_interval
from tokenwm.imagination.starts import choose_starts
from tokenwm.imagination.token_world_model import TokenWorldModel, load
from tokenwm.synthesis.changes import changed_actions
from tokenwm.synthesis.counterfactual import CounterfactualConfig, imagine_instead
from tokenwm.synthesis.imagine import ImagineConfig
from tokenwm.tokenizer.actions import BinTokenizer

POSE = ("block_x", "block_y", "block_angle")
AGREEING = (0.75, 0.875, 1.0)
"""Shares of a case's futures that agree on a sign, from which on it does not count as doubtful."""
NEAR = 0.5
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Another course of action, and what it changes in truth.

    Attributes:
        key: Episode.
        first_step: First step of the context.
        change: In words.
        true_change: Of x, y (px) and angle (degrees) at the last step.
        shift: By how much the pusher's goals move in x and y on the average, px.
    """

    key: str
    first_step: int
    change: str
    true_change: tuple[float, float, float]
    shift: tuple[float, float]


def difference(pose: Floats, other: Floats) -> Floats:
    """``pose - other``: px, px and degrees, the shortest way round."""
    turn = (pose[2] - other[2] + np.pi) % (2.0 * np.pi) - np.pi
    return np.array([pose[0] - other[0], pose[1] - other[1], np.degrees(turn)])


def true_pose(reader: ShardReader, key: str, step: int, actions: NDArray[Any]) -> Floats | None:
    """The block's pose after actions from a recorded step on; None if they end the episode."""
    with closing(reach(reader, key, step, env_kwargs={"obs_type": "state"})) as env:
        for action in actions.reshape(len(actions) * reader.manifest.actions_per_step, -1):
            if env.step(decode_action(env.action_space, action))[2]:
                return None
        pose: Floats = np.array(env.info[TASK_STATE][:3], dtype=np.float64)
    return pose


def cases(
    model: TokenWorldModel, reader: ShardReader, arguments: argparse.Namespace
) -> Iterator[Case]:
    """Cases in which the true change is large enough, one of each start, in a random order."""
    context, horizon = arguments.context, arguments.horizon
    generator = np.random.default_rng(arguments.seed)
    tokenizer = model.vocabulary.action
    assert isinstance(tokenizer, BinTokenizer)
    found = choose_starts(
        reader, arguments.split, num_steps=context + horizon, num_starts=arguments.starts
    )
    checked = 0
    for place in generator.permutation(len(found.rows)):
        row = found.rows[place]
        step = row.first_step + context - 1
        recorded = reader.arrays(row.key, ["action", TASK_STATE], step, step + horizon + 1)
        own, end = recorded["action"][:-1], recorded[TASK_STATE][-1, :3].astype(np.float64)
        kinds = [f"{dimension}{sign}=15%" for dimension in "01" for sign in "+-"]
        kinds.append(f"{generator.choice(found.keys)}:{step}")
        for change in generator.permutation(kinds):
            try:
                other = changed_actions(model, reader, own, [str(change)])
            except TokenwmError:
                continue  # an episode that is over by then
            if tokenizer.outside(other).any() or np.array_equal(own, other):
                continue
            if checked < 3:  # the simulator does what was recorded
                reached = true_pose(reader, row.key, step, own)
                assert reached is None or np.abs(difference(reached, end)).max() < NEAR, row
                checked += 1
            pose = true_pose(reader, row.key, step, other)
            shift = (other - own).reshape(-1, 2).mean(0)
            if pose is not None:
                change_ = difference(pose, end)
                if np.hypot(*change_[:2]) > arguments.moved or abs(change_[2]) > arguments.turned:
                    yield Case(
                        key=row.key,
                        first_step=row.first_step,
                        change=str(change),
                        true_change=(float(change_[0]), float(change_[1]), float(change_[2])),
                        shift=(float(shift[0]), float(shift[1])),
                    )
            break


def imagined(
    model: TokenWorldModel, reader: ShardReader, case: Case, arguments: argparse.Namespace
) -> dict[str, Any]:
    """What the model says of a case."""
    settings = ImagineConfig(
        key=case.key,
        first_step=case.first_step,
        num_context_frames=arguments.context,
        imagination_horizon=arguments.horizon,
        num_samples=arguments.samples,
        seed=arguments.seed,
    )
    found = imagine_instead(
        model, reader, CounterfactualConfig(imagine=settings, changes=(case.change,))
    ).quantities
    if POSE[0] not in found:
        raise TokenwmError("the model has no readout of the block; tokenwm evaluate trains one")
    ends = [found[name] for name in POSE]
    doubt = found.get("doubt")
    mean = [float(end.mean[-1]) for end in ends]
    return {
        **asdict(case),
        "change_imagined": [*mean[:2], float(np.degrees(mean[2]))],
        "agreeing": [float(end.same_sign[-1]) for end in ends],
        "doubt": None if doubt is None else float(max(doubt.own.mean(), doubt.instead.mean())),
    }


def rate(right: Sequence[bool], keys: Sequence[str]) -> dict[str, Any]:
    """How many of so many are right, with Wilson's interval and one over episodes."""
    low, high = wilson_interval(sum(right), len(right))
    known: dict[str, Any] = {"right": sum(right), "cases": len(right), "wilson": [low, high]}
    if right:
        records = [{"key": key, "right": each} for key, each in zip(keys, right, strict=True)]
        found = interval(records, mean_of(itemgetter("right")))
        known |= {"rate": found["value"], "episodes": [found["low"], found["high"]]}
        known["num_episodes"] = len(set(keys))
    return known


def summary(rows: Sequence[dict[str, Any]], moved: float, turned: float) -> dict[str, Any]:
    """Rates of right signs, by quantity and for all three together."""
    doubts = [row["doubt"] for row in rows if row["doubt"] is not None]
    middle = float(np.median(doubts)) if doubts else None
    chosen = [
        (row, index)
        for row in rows
        for index, least in enumerate((moved, moved, turned))
        if abs(row["true_change"][index]) > least
    ]

    def right(row: dict[str, Any], index: int) -> bool:
        return bool(row["change_imagined"][index] * row["true_change"][index] > 0)

    def rule(row: dict[str, Any], index: int) -> bool:
        return bool(row["shift"][index] * row["true_change"][index] > 0)

    def of(keep: Callable[[dict[str, Any], int], bool]) -> dict[str, Any]:
        kept = [(row, index) for row, index in chosen if keep(row, index)]

        def rates(some: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
            return rate([right(*pair) for pair in some], [row["key"] for row, _ in some])

        named = {
            name: rates([pair for pair in kept if pair[1] == index])
            for index, name in enumerate(POSE)
        }
        places = [pair for pair in kept if pair[1] < 2]
        follows = rate([rule(*pair) for pair in places], [row["key"] for row, _ in places])
        return {**named, "together": rates(kept), "rule_block_x_and_y": follows}

    def agrees(least: float) -> dict[str, Any]:
        return of(lambda row, index: row["agreeing"][index] >= least)

    found = {"all": of(lambda row, index: True)}
    found |= {f"at least {least:g} of the futures agree": agrees(least) for least in AGREEING}
    if middle is not None:
        found["the half with less doubt"] = of(lambda row, index: row["doubt"] <= middle)
        found["both, 1"] = of(
            lambda row, index: row["doubt"] <= middle and row["agreeing"][index] >= AGREEING[-1]
        )
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    for name, value in {"cases": 150, "horizon": 4, "context": 4, "samples": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--starts", type=int, default=4, help="of each episode")
    parser.add_argument("--moved", type=float, default=10.0, help="px of the 512 px table")
    parser.add_argument("--turned", type=float, default=10.0, help="degrees")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, reader = load(arguments.model), ShardReader(arguments.data)
    rows = []
    for case in cases(model, reader, arguments):
        rows.append(imagined(model, reader, case, arguments))
        if len(rows) % 10 == 0:
            print(f"{len(rows)} of {arguments.cases}", file=sys.stderr)
        if len(rows) == arguments.cases:
            break
    settings = {name: str(value) for name, value in vars(arguments).items()}
    seconds = arguments.horizon / model.control_rate
    found = summary(rows, arguments.moved, arguments.turned)
    print(json.dumps({**settings, "seconds": seconds, "rates": found, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
