"""Acted episodes and their figures: plain records."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenwm.evaluation.metrics import interval_curve, wilson_interval

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """A plan and what then happened.

    Attributes:
        step: Robot step that it was made for.
        expected_return: As the plan says.
        spread: The same.
        doubt: The same.
        num_rollouts: The same.
        seconds: From the observation until its action.
        surprise: The model's at what it then observed, when the next plan was made, nats per token;
            None if nothing tells.
        reward: Sum of the real rewards over the plan's steps; None if the episode ended before.
        verdict: ``accepted``, ``rejected`` or ``unknown``; None if nobody judged it.
    """

    step: int
    expected_return: float
    spread: float | None
    doubt: float | None
    num_rollouts: int
    seconds: float
    surprise: float | None
    reward: float | None
    verdict: str | None


@dataclass(frozen=True, kw_only=True)
class ActedEpisode:
    """One episode.

    Attributes:
        index: Its number.
        env_seed: What the simulator was reset with.
        num_steps: Steps of the robot.
        success: Whether the simulator said at any step that the task is done; None if it says
            nothing.
        reward: Sum of all rewards.
        terminated: Whether the task ended, and not only the time.
        came: Where actions came from → how many.
        missed_deadlines: Plans that were not there in time.
        latencies: Seconds from observation to action, of each step at which a plan was due.
        plans: Those that were there in time.
        recording: Name of its file; empty if it was not kept.
        stopped: Why the robot was stopped: no action was within the hard limits; empty if it was
            not.
        film: Of the first episodes; not kept in figures.
    """

    index: int
    env_seed: int
    num_steps: int
    success: bool | None
    reward: float
    terminated: bool
    came: dict[str, int]
    missed_deadlines: int
    latencies: tuple[float, ...]
    plans: tuple[PlanRecord, ...]
    recording: str
    stopped: str = ""
    film: "Film | None" = None


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film: what was seen, and what had been imagined of it.

    Attributes:
        real: ``(T, cameras, H, W, 3)`` uint8, a frame for each step of the model.
        imagined: The same, by the latest plan before; None where nothing was imagined.
        rate: Frames per second.
        goal: ``(cameras, H, W, 3)`` uint8, the picture of the goal, if there was one.
    """

    real: NDArray[np.uint8]
    imagined: NDArray[np.uint8] | None
    rate: float
    goal: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Episodes and their figures; ``DERIVED`` go into ``control.json`` as well.

    Attributes:
        about: Model, simulator, planner, objective, settings.
        rate: Steps of the robot per second, Hz.
        episodes: All of them.
        to_goals: Whether episodes are tries to reach goals, and rewards do not count.
        others: Who else tried the same, to compare with → how often they succeeded.
    """

    DERIVED: ClassVar = (
        *("success", "returns", "latency_seconds", "missed_deadlines", "fallbacks", "stopped"),
    )

    about: dict[str, Any]
    rate: float
    episodes: tuple[ActedEpisode, ...] = field(default=())
    to_goals: bool = False
    others: dict[str, int] = field(default_factory=dict)

    @property
    def success(self) -> dict[str, float] | None:
        """Successes and trials, their rate and Wilson's interval of it; None if nothing tells."""
        told = [episode.success for episode in self.episodes if episode.success is not None]
        if not told:
            return None
        low, high = wilson_interval(sum(told), len(told))
        rate = sum(told) / len(told)
        return {
            "successes": sum(told),
            "trials": len(told),
            "rate": rate,
            "low": low,
            "high": high,
        }

    @property
    def returns(self) -> dict[str, float]:
        """Mean over the episodes of the sum of rewards, with Student's interval."""
        sums = np.array([[episode.reward] for episode in self.episodes])
        curve = interval_curve(sums)
        ends = (curve.mean[0], curve.low[0], curve.high[0])
        return dict(zip(("mean", "low", "high"), map(float, ends), strict=True))

    @property
    def latency_seconds(self) -> dict[str, float] | None:
        """Percentiles of the time from observation to action where a plan was due, late or not."""
        taken = [seconds for episode in self.episodes for seconds in episode.latencies]
        if not taken:
            return None
        values = np.percentile(taken, PERCENTILES)
        named = {f"p{at}": float(v) for at, v in zip(PERCENTILES, values, strict=True)}
        return {**named, "steps": len(taken)}

    @property
    def missed_deadlines(self) -> int:
        """Plans that were not there in time."""
        return sum(episode.missed_deadlines for episode in self.episodes)

    @property
    def stopped(self) -> int:
        """Episodes in which the robot was stopped, for want of an action within the limits."""
        return sum(bool(episode.stopped) for episode in self.episodes)

    @property
    def fallbacks(self) -> dict[str, int]:
        """Actions that came not from the plan that was due, by where they came from."""
        found: dict[str, int] = {"rest of the last plan": 0, "safe action": 0}
        for episode in self.episodes:
            for name in found:
                found[name] += episode.came.get(name, 0)
        return found
