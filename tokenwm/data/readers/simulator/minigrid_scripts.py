"""Policies for MiniGrid, which find their way by trying all that can be done in a copy of it."""

from collections import deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenwm.errors import RecipeError

LEFT, RIGHT, FORWARD, PICK_UP, DROP, TOGGLE = range(6)
WAYS = (LEFT, RIGHT, FORWARD, PICK_UP, TOGGLE)
"""Actions that a way is made of; nothing has to be dropped on it."""
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Column and row that the agent looks towards, by its direction."""
BURST, LONGEST_BURST = 0.08, 6
"""Probability, at a step, that the wanderer begins to act at random, and for how long at most."""


@dataclass(frozen=True, eq=False)
class _Place:
    """A situation of the simulator, and how it was come to.

    Attributes:
        grid: Its cells; shared by places between which no cell changes.
        content: The cells as bytes.
        position: Column and row of the agent.
        direction: Of the agent, 0 to 3.
        carrying: What it carries, or None.
        before: The place that an action led here from; None of the first.
        action: That action.
        reward: Of that action; None where it did not end the episode.
    """

    grid: Any
    content: bytes
    position: tuple[int, ...]
    direction: int
    carrying: Any
    before: "_Place | None" = None
    action: int = -1
    reward: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """A key that tells it from others."""
        carried = None if self.carrying is None else self.carrying.encode()
        return self.content, self.position, self.direction, carried

    @property
    def faces_a_thing(self) -> bool:
        """True if something other than a wall is in front of the agent."""
        column, row = (p + s for p, s in zip(self.position, STEPS[self.direction], strict=True))
        cell = self.grid.get(column, row)
        return cell is not None and cell.type != "wall"

    @property
    def way(self) -> list[int]:
        """The fewest actions that lead here."""
        place: _Place | None = self
        actions: list[int] = []
        while place is not None and place.before is not None:
            actions.append(place.action)
            place = place.before
        return actions[::-1]


def places_from_here(simulator: Any) -> list[_Place]:
    """All that can be come to, the nearest first; the simulator is left as it is.

    Args:
        simulator: A MiniGrid environment without chance, unwrapped.
    """
    trial = _silent_copy(simulator)
    first = _Place(
        grid=trial.grid,
        content=trial.grid.encode().tobytes(),
        position=tuple(int(x) for x in trial.agent_pos),
        direction=int(trial.agent_dir),
        carrying=trial.carrying,
    )
    found, waiting = {first.key: first}, deque([first])
    while waiting:
        place = waiting.popleft()
        for action in WAYS:
            after = _tried(trial, place, action)
            if after is not None and after.key not in found:
                found[after.key] = after
                if after.reward is None:
                    waiting.append(after)
    return list(found.values())


def _silent_copy(simulator: Any) -> Any:
    """A copy that observes nothing, which takes nearly all of a step's time."""
    trial = deepcopy(simulator)
    trial.gen_obs = lambda: None
    return trial


def _tried(trial: Any, place: _Place, action: int) -> _Place | None:
    """The place that an action leads to; None where it cannot do anything."""
    grid, content, carrying = place.grid, place.content, place.carrying
    trial.grid, trial.carrying = grid, carrying
    trial.agent_pos, trial.agent_dir, trial.step_count = place.position, place.direction, 0
    if action in (PICK_UP, TOGGLE):
        if grid.get(*trial.front_pos) is None:
            return None
        trial.grid, trial.carrying = deepcopy((grid, carrying))
    _, reward, terminated, _, _ = trial.step(action)
    if action in (PICK_UP, TOGGLE):
        grid, content = trial.grid, trial.grid.encode().tobytes()
    return _Place(
        grid=grid,
        content=content,
        position=tuple(int(x) for x in trial.agent_pos),
        direction=int(trial.agent_dir),
        carrying=trial.carrying,
        before=place,
        action=action,
        reward=float(reward) if terminated else None,
    )


def shortest_way(places: list[_Place]) -> list[int]:
    """The fewest actions to a reward; empty where none can be had."""
    return next((place.way for place in places if place.reward), [])


def minigrid_solver(env: Any, rng: np.random.Generator) -> Callable[[], int]:
    """Take the shortest way to the reward; where there is none, stay."""
    simulator, way = _minigrid(env, "minigrid_solver"), list[int]()

    def next_action() -> int:
        way[:] = way or shortest_way(places_from_here(simulator)) or [int(simulator.actions.done)]
        return way.pop(0)

    return next_action


def minigrid_wanderer(env: Any, rng: np.random.Generator) -> Callable[[], int]:
    """Explore: now to the reward, now to any place that can be come to, and now at random.

    Random play alone hardly ever gets through a door that needs a key, and the shortest way alone
    shows nothing but that. Half of the places face a thing, and there it tries what can be done
    with one, in any order: a model has to see that a door stays shut without the key.
    """
    simulator, way = _minigrid(env, "minigrid_wanderer"), list[int]()

    def next_action() -> int:
        if rng.random() < BURST:
            way[:] = rng.integers(0, env.action_space.n, rng.integers(1, LONGEST_BURST + 1))
        elif not way:
            places = places_from_here(simulator)
            way[:] = shortest_way(places) if rng.random() < 0.3 else []
            if not way:
                facing = [place for place in places if place.faces_a_thing]
                among = facing if facing and rng.random() < 0.5 else places
                way[:] = among[rng.integers(len(among))].way
                way.extend(rng.permutation([PICK_UP, DROP, TOGGLE])[: rng.integers(0, 4)].tolist())
        return int(way.pop(0)) if way else int(rng.integers(0, env.action_space.n))

    return next_action


def _minigrid(env: Any, policy: str) -> Any:
    """The simulator behind an environment.

    Raises:
        RecipeError: It is not MiniGrid.
    """
    simulator = env.unwrapped
    if not hasattr(simulator, "grid") or not hasattr(simulator, "agent_dir"):
        raise RecipeError(f"policy {policy} is for environments of MiniGrid, not for {simulator}")
    return simulator
