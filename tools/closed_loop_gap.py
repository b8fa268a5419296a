"""Share of the gap between random play and the best known controller that a model's plans close.

::

    python tools/closed_loop_gap.py runs/reacher/world_model --best reacher_solver --out gap.json \\
        --runs plans=runs/acted random=runs/acted_random

Each of ``--runs`` is a folder that ``tokenwm control`` wrote for the model, or several with commas
between, of the seeds that ``--seed`` names; one is called ``random``. The best known controller is
a policy of the library's scripts, which may read the simulator, and ``nothing`` does nothing. Both
act in the simulator, and in its episodes, of the runs. Intervals of returns and shares are of draws
of episodes (95 %, 10,000 draws, in pairs, since all begin alike); those of successes, which are
episodes with a return above 0 where the simulator ends them with a reward, are Wilson's.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokenwm
from tokenwm.control.simulator import Simulator, seeded, simulator_for
from tokenwm.data.readers.simulator.environments import num_actions_of
from tokenwm.data.readers.simulator.recorder import EpisodeRecorder, make_watched, record
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import wilson_interval
from tokenwm.strict import key_values

RANDOM, NOTHING, BEST = "random", "nothing", "best known"
DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Returns:
    """What came of some episodes: ``(n,)`` each; episodes are told apart by their seeds."""

    seeds: NDArray[np.int64]
    rewards: NDArray[np.float64]
    num_steps: NDArray[np.int64]
    terminated: NDArray[np.bool_]

    @classmethod
    def of(cls, episodes: list[tuple[int, float, int, bool]]) -> "Returns":
        """Of seed, return, steps and whether it ended, for each episode."""
        columns = [np.array(column) for column in zip(*episodes, strict=True)]
        return cls(
            seeds=columns[0], rewards=columns[1], num_steps=columns[2], terminated=columns[3]
        )

    @classmethod
    def cat(cls, parts: "Sequence[Returns]") -> "Returns":
        """Those of several seeds."""
        return cls(**{n: np.concatenate([vars(part)[n] for part in parts]) for n in vars(parts[0])})

    @classmethod
    def read(cls, folder: Path) -> "Returns":
        """Of the episodes of ``control.json``.

        Raises:
            TokenwmError: There is none.
        """
        path = folder / "control.json"
        try:
            episodes = json.loads(path.read_text())["episodes"]
        except (OSError, ValueError, KeyError) as error:
            raise TokenwmError(
                f"{path} cannot be read: {error}; give tokenwm control's --out"
            ) from (error)
        names = ("env_seed", "reward", "num_steps", "terminated")
        return cls.of([tuple(episode[name] for name in names) for episode in episodes])


def main() -> None:
    """Act, join, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--best", required=True, help="name of a policy in the simulator's scripts")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--set", nargs="*", default=[], help="as given to tokenwm control")
    parser.add_argument("--env", help="the same")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="the same")
    parser.add_argument("--nothing", type=int, default=0, help="the id that does nothing")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    arms = {
        str(name): Returns.cat([Returns.read(Path(part)) for part in str(folders).split(",")])
        for name, folders in key_values("--runs", given.runs).items()
    }
    model = tokenwm.load(given.model)
    simulator = simulator_for(model, given.env, key_values("--set", given.set))
    count = max(len(arm.seeds) for arm in arms.values())
    for name, policy in ((BEST, given.best), (NOTHING, None)):
        of_seeds = [
            acted(seeded(simulator, seed), count, policy, given.nothing) for seed in given.seed
        ]
        arms[name] = Returns.cat(of_seeds)
    results = joined(arms)
    given.out.write_text(json.dumps(results, indent=2) + "\n")
    for name, result in results.items():
        print(f"{name:12}", {k: np.round(v, 3).tolist() for k, v in result.items()})


def acted(simulator: Simulator, count: int, policy: str | None, nothing: int) -> Returns:
    """What a policy of the scripts gets in the episodes of a simulator; None does nothing."""
    options = simulator.options if policy is None else replace(simulator.options, policy=policy)
    options = replace(options, cameras={}, state=options.state or "observation")
    episodes = []
    for index in range(count):
        recorder = EpisodeRecorder(options, simulator.format, index)
        recorder.observe = lambda *_: None  # type: ignore[method-assign]
        if policy is None:
            recorder.policy = lambda env, rng: lambda: still(env.action_space, nothing)
        with closing(make_watched(options)) as env:
            record(options, recorder, env)
        reward, steps = float(sum(recorder.reward)), len(recorder.action)
        episodes.append((recorder.env_seed, reward, steps, recorder.terminated))
    return Returns.of(episodes)


def still(space: Any, nothing: int) -> Any:
    """The action that does nothing: zero, or an id."""
    if num_actions_of(space) is None:
        return np.zeros(space.shape, dtype=space.dtype)
    return nothing


def joined(arms: dict[str, Returns]) -> dict[str, dict[str, Any]]:
    """Figures of every arm, over the episodes that all arms have.

    Raises:
        TokenwmError: There is no random arm, or no episode that all have.
    """
    if RANDOM not in arms:
        raise TokenwmError(f"--runs: no run is called {RANDOM}; give {RANDOM}=FOLDER")
    common = set.intersection(*(set(arm.seeds.tolist()) for arm in arms.values()))
    if not common:
        raise TokenwmError("--runs: no episode is in all of them; give the same seed to all")
    seeds = sorted(common)
    rows = {n: [arm.seeds.tolist().index(s) for s in seeds] for n, arm in arms.items()}
    rewards = {name: arm.rewards[rows[name]] for name, arm in arms.items()}
    drawn = np.random.default_rng(0).integers(0, len(seeds), (DRAWS, len(seeds)))
    results = {}
    for name, arm in arms.items():
        ended = arm.terminated[rows[name]] & (rewards[name] > 0.0)
        result: dict[str, Any] = {
            "episodes": len(seeds),
            "return": with_interval(rewards[name], drawn),
            "steps": float(arm.num_steps[rows[name]].mean()),
            "successes": int(ended.sum()),
            "success": [float(ended.mean()), *wilson_interval(int(ended.sum()), len(seeds))],
        }
        for floor in (RANDOM, NOTHING):
            if name not in (floor, BEST) and floor in arms:
                better = with_interval(rewards[name] - rewards[floor], drawn)
                result[f"above {floor}"] = better
                share = shares(rewards[name], rewards[floor], rewards[BEST], drawn)
                result[f"share of the gap from {floor}"] = share
        results[name] = result
    return results


def with_interval(values: NDArray[np.float64], drawn: NDArray[np.int64]) -> list[float]:
    """Mean and its interval over draws of episodes."""
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return [float(values.mean()), float(low), float(high)]


def shares(
    values: NDArray[np.float64],
    floor: NDArray[np.float64],
    best: NDArray[np.float64],
    drawn: NDArray[np.int64],
) -> list[float]:
    """``(mean - floor) / (best - floor)`` and its interval over draws of episodes."""

    def share(rows: NDArray[np.int64]) -> Any:
        low = floor[rows].mean(-1)
        return (values[rows].mean(-1) - low) / (best[rows].mean(-1) - low)

    ends = np.percentile(share(drawn), (2.5, 97.5))
    return [float(share(np.arange(len(values)))), *map(float, ends)]


if __name__ == "__main__":
    main()
