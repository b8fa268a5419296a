"""Hard limits on what a robot is told to do: checked outside the model, and nothing overrides them.

A model may be wrong about everything it has not seen; a limit on the commands themselves is not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_array
from tokenwm.shapes import check_shape, is_number, is_whole, shown
from tokenwm.strict import build, parse_yaml, plain

Range = tuple[float, float]
Predicate = Callable[[Tensor, Tensor | None], Tensor]
"""Function from robot actions ``(B, T, dims)`` and states ``(B, P)`` or None to ``(B,)`` bool:
True where they are allowed."""
Floats = NDArray[np.float64]
RATE_TOLERANCE = 0.01
"""Part of its rate by which a robot may be faster or slower than its limits say."""


@dataclass(frozen=True, kw_only=True)
class Breach:
    """A limit that a chunk breaks.

    Attributes:
        limit: ``finite``, ``position``, ``workspace``, ``speed``, ``acceleration`` or
            ``predicate``.
        step: Robot action of the chunk at which it is first broken; None of a predicate, which
            judges whole chunks.
        dimension: Dimension of the robot's action that breaks it; None of a predicate.
        value: What it is there, in the units of the limit; None of a predicate.
        allowed: Lowest and highest value; None of a predicate.
    """

    limit: str
    step: int | None = None
    dimension: int | None = None
    value: float | None = None
    allowed: Range | None = None

    def __str__(self) -> str:
        if self.value is None or self.allowed is None:
            return f"the {self.limit} does not allow it"
        low, high = self.allowed
        return (
            f"{self.limit} of dimension {self.dimension} is {self.value:.6g} at action "
            f"{self.step}; allowed is [{low:.6g}, {high:.6g}]"
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one robot, in the units of its actions; what is None is not limited.

    Speed is the change of a command from one action to the next times ``rate``, acceleration the
    change of that, so a command that is a place has the robot's own units per second. A chunk that
    stacks several actions of the robot in one step is unfolded first.

    Attributes:
        rate: Actions of the robot per second, Hz.
        position: Lowest and highest value of each dimension.
        speed: Most change per second of each dimension, units/s; a dimension's None is no limit.
        acceleration: Most change of the speed per second, units/s²; the same.
        workspace: Dimension (its number as text, as files have it) → lowest and highest value: a
            box on some dimensions, on top of ``position``. What the user knows, not the data.
        actions_per_step: Actions of the robot that lie side by side in an action of the model.
        increments: Whether actions are added to where the robot is, so that its place is the state
            plus all of them so far, and not the action itself. Dimensions of the state are then
            those of the action.
        predicate: A check of the user's own on top; not kept in files.

    Raises:
        TokenwmError: A value is out of range.
    """

    rate: float
    position: tuple[Range, ...] | None = None
    speed: tuple[float | None, ...] | None = None
    acceleration: tuple[float | None, ...] | None = None
    workspace: dict[str, Range] = field(default_factory=dict)
    actions_per_step: int = 1
    increments: bool = False
    predicate: Predicate | None = field(default=None, metadata={"key": False})

    def __post_init__(self) -> None:
        if not is_number(self.rate) or not 0 < self.rate < float("inf"):
            raise TokenwmError(f"rate={shown(self.rate)}; use actions per second, above 0")
        if not is_whole(self.actions_per_step):
            raise TokenwmError(
                f"actions_per_step={shown(self.actions_per_step)}; use a whole number, at least 1"
            )
        for name in ("speed", "acceleration"):
            for value in getattr(self, name) or ():
                if value is not None and not (is_number(value) and value > 0):
                    raise TokenwmError(f"{name} holds {shown(value)}; use numbers above 0, or null")
        ranges = [("position", each) for each in self.position or ()]
        ranges += [(f"workspace[{name}]", each) for name, each in self.workspace.items()]
        for name, (low, high) in ranges:
            if not low <= high:  # NaN is not either
                raise TokenwmError(f"{name} is [{low}, {high}]; use [lowest, highest]")
        if not all(name.isdecimal() for name in self.workspace):
            raise TokenwmError(
                f"workspace names {', '.join(self.workspace)}; use numbers of dimensions, from 0"
            )
        if len(self._sizes) > 1:
            raise TokenwmError(
                f"position, speed and acceleration have {sorted(self._sizes)} dimensions; give one "
                "entry for each dimension of the robot's action"
            )

    @property
    def _sizes(self) -> set[int]:
        parts = (self.position, self.speed, self.acceleration)
        return {len(part) for part in parts if part is not None}

    def check(
        self,
        actions: Tensor | NDArray[Any],
        state: Tensor | NDArray[Any] | None = None,
        previous: Tensor | NDArray[Any] | None = None,
    ) -> list[Breach | None]:
        """The first limit that each chunk breaks, None for chunks within all of them.

        Values that are not finite always break one. Waits for the device.

        Args:
            actions: ``(B, H, A)`` in units, as the model takes them.
            state: ``(B, P)`` where the robot is, in units; ``increments`` and predicates need it.
            previous: ``(B, n, dims)`` the robot's last actions, of which speed and acceleration of
                the first ones follow; without them these are checked from where they are known.

        Raises:
            TokenwmError: Actions, state or previous have another shape than the limits.
        """
        robot = self._unfolded(as_array("actions", actions))
        where = None if state is None else as_array("state", state).astype(np.float64)
        places = self._summed(robot, where) if self.increments else robot
        commands = np.concatenate([_known(previous, robot), robot], axis=1)
        speed = np.diff(commands, axis=1, prepend=np.nan) * self.rate
        if self.increments:
            speed = commands * self.rate
        acceleration = np.diff(speed, axis=1, prepend=np.nan) * self.rate
        broken: list[Breach | None] = [None] * len(robot)
        _note_unknown(broken, robot + places)
        own = slice(commands.shape[1] - robot.shape[1], None)
        box = np.tile([-np.inf, np.inf], (robot.shape[2], 1))
        for name, ends in self.workspace.items():
            box[int(name)] = ends
        _note(broken, "position", places, self.position)
        _note(broken, "workspace", places, box)
        _note(broken, "speed", speed[:, own], _both_ways(self.speed))
        _note(broken, "acceleration", acceleration[:, own], _both_ways(self.acceleration))
        if self.predicate is not None:
            self._ask(broken, robot, where)
        return broken

    def allows(self, actions: Any, state: Any = None, previous: Any = None) -> NDArray[np.bool_]:
        """``(B,)`` bool, whether a chunk is within all limits; see :meth:`check`."""
        return np.array([breach is None for breach in self.check(actions, state, previous)])

    def _unfolded(self, actions: NDArray[Any]) -> Floats:
        """``(B, H, A)`` → ``(B, H * n, dims)``."""
        sizes = check_shape("actions", actions, ("B", "H", "A"))
        dims, rest = divmod(sizes["A"], self.actions_per_step)
        wanted = next(iter(self._sizes), dims)
        if rest or dims != wanted:
            raise TokenwmError(
                f"actions has {sizes['A']} numbers in a step; the limits are for "
                f"{self.actions_per_step} action(s) of {wanted} dimension(s)"
            )
        highest = max(map(int, self.workspace), default=-1)
        if highest >= dims:
            raise TokenwmError(f"workspace names dimension {highest}; actions have 0 to {dims - 1}")
        return actions.reshape(sizes["B"], -1, dims).astype(np.float64)

    def _summed(self, robot: Floats, state: Floats | None) -> Floats:
        if state is None:
            raise TokenwmError("increments=True needs the state, to know where they lead")
        check_shape("state", state, (len(robot), robot.shape[2]))
        return np.asarray(state[:, None] + robot.cumsum(1))

    def _ask(self, broken: list[Breach | None], robot: Floats, state: Floats | None) -> None:
        assert self.predicate is not None
        where = None if state is None else torch.from_numpy(state)
        allowed = self.predicate(torch.from_numpy(robot), where)
        check_shape("what the predicate of the limits returned", allowed, (len(robot),))
        for row, is_allowed in enumerate(allowed.tolist()):
            if not is_allowed and broken[row] is None:
                broken[row] = Breach(limit="predicate")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a file has them; without the predicate."""
        values: dict[str, Any] = plain(self, without=("predicate",))
        return values


def _known(previous: Any, robot: Floats) -> Floats:
    """The robot's last actions, ``(B, n, dims)``, none if they are not given."""
    if previous is None:
        return robot[:, :0]
    known = as_array("previous", previous).astype(np.float64)
    check_shape("previous", known, (len(robot), "n", robot.shape[2]))
    if not np.isfinite(known).all():
        raise TokenwmError("previous holds values that are not finite; give what the robot did")
    return known


def _both_ways(most: Sequence[float | None] | None) -> Floats | None:
    """A limit of amounts as a range, ``(dims, 2)``."""
    if most is None:
        return None
    high = np.array([np.inf if value is None else value for value in most])
    return np.stack([-high, high], axis=1)


def _note_unknown(broken: list[Breach | None], values: Floats) -> None:
    """Note the first value that is no finite number."""
    for row, step, dimension in np.argwhere(~np.isfinite(values)).tolist():
        if broken[row] is None:
            broken[row] = Breach(
                limit="finite",
                step=step,
                dimension=dimension,
                value=float(values[row, step, dimension]),
                allowed=(-np.inf, np.inf),
            )


def _note(
    broken: list[Breach | None], name: str, values: Floats, ranges: Floats | Any | None
) -> None:
    """Note the first place where a row that broke nothing yet does; what is NaN is not known.

    Args:
        broken: ``B`` rows, changed here.
        name: Name of the limit.
        values: ``(B, T, dims)``.
        ranges: ``(dims, 2)`` lowest and highest, or None.
    """
    if ranges is None:
        return
    low, high = np.asarray(ranges, dtype=np.float64).T
    # As float32, which actions are: what lies at a limit is not beyond it.
    outside = (values.astype(np.float32) < low.astype(np.float32)) | (
        values.astype(np.float32) > high.astype(np.float32)
    )
    for row in np.flatnonzero(outside.any((1, 2))):
        if broken[row] is None:
            step, dimension = map(int, np.argwhere(outside[row])[0])
            broken[row] = Breach(
                limit=name,
                step=step,
                dimension=dimension,
                value=float(values[row, step, dimension]),
                allowed=(float(low[dimension]), float(high[dimension])),
            )


def limits_for(limits: Limits, world: Any) -> Limits:
    """The limits as they hold for the chunks of a world, whatever a file says of their size.

    Args:
        limits: For the robot.
        world: A :class:`~tokenwm.imagination.world.World` of it.

    Raises:
        TokenwmError: They are for another rate, so speeds and accelerations would be wrong.
    """
    count = world.vocabulary.actions_per_step
    rate = world.control_rate * count
    if abs(limits.rate - rate) > RATE_TOLERANCE * rate:
        raise TokenwmError(
            f"the limits are for {limits.rate:g} actions per second and this robot takes "
            f"{rate:g}, so their speeds would be others; give limits with rate: {rate:g}"
        )
    return replace(limits, actions_per_step=count)


def limits_from(values: Mapping[str, Any], where: str = "limits") -> Limits:
    """Limits of plain values, as :meth:`Limits.to_dict` gives them; some keys may be missing.

    Raises:
        TokenwmError: An unknown key, a wrong type or an impossible value.
    """
    made = build(Limits, values, where, allow_defaults=True)
    assert isinstance(made, Limits)
    return made


def load_limits(path: Path) -> Limits:
    """Limits of a YAML or JSON file, such as ``tokenwm info DATASET --limits FILE`` writes.

    Raises:
        TokenwmError: It cannot be read or holds something else.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TokenwmError(f"limits {path} cannot be read: {error}") from error
    try:
        return limits_from(values, "")
    except TokenwmError as error:
        raise TokenwmError(f"limits {path}: {error}") from error
