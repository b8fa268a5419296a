"""A recorded stretch imagined twice: with its own actions, and with others instead.

Both have the same luck: future ``n`` of the one and future ``n`` of the other draw with the same
noise stream, so that they differ by the actions alone. How far the differences of several streams
agree says how sure a difference is, as far as the model is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import interval_curve
from tokenwm.heads.doubt import NAME as DOUBT
from tokenwm.heads.doubt import Doubt
from tokenwm.heads.folder import has_head, load_head
from tokenwm.heads.readout import FIELD, Readout
from tokenwm.heads.readout import NAME as READOUT
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.shapes import is_whole, shown
from tokenwm.synthesis.changes import changed_actions
from tokenwm.synthesis.imagine import ImagineConfig, choose_actions, read_start
from tokenwm.tokenizer.actions import BinTokenizer

Floats = NDArray[np.float64]

INSTEAD_SAMPLES = 8
"""Pairs of futures, where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class CounterfactualConfig:
    """Settings of an imagined alternative.

    Attributes:
        imagine: Episode, context, horizon, noise; its ``num_samples`` are ``N``, the streams of
            noise. Its ``actions`` must be ``own``.
        changes: The other actions, in words (:mod:`tokenwm.synthesis.changes`).
        num_changed: Actions that are changed, from the last observed step on; None for all.
    """

    imagine: ImagineConfig = field(
        default_factory=lambda: ImagineConfig(num_samples=INSTEAD_SAMPLES)
    )
    changes: tuple[str, ...]
    num_changed: int | None = None

    def __post_init__(self) -> None:
        if self.imagine.actions != "own":
            raise TokenwmError(
                f"actions={self.imagine.actions!r}: other actions are compared with the episode's "
                "own; leave `actions` out"
            )
        if not self.changes:
            raise TokenwmError("no change is given; use NAME=VALUE, NAME+=10%, EPISODE:STEP, …")
        most = self.imagine.imagination_horizon
        if self.num_changed is not None and not (
            is_whole(self.num_changed) and self.num_changed <= most
        ):
            raise TokenwmError(
                f"num_changed={shown(self.num_changed)}; use 1 to {most}, the imagined steps"
            )


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number of every imagined step, with the recorded and with the other actions.

    Attributes:
        name: Its name.
        unit: Its unit; empty if unknown.
        turn: A full turn of an angle, whose differences are the shortest way round; 0 of others.
        truth: ``(H,)``, what was recorded with the episode's own actions; None where nothing was.
        own: ``(N, H)``, imagined with these.
        instead: ``(N, H)``, imagined with the others; row ``n`` has the luck of row ``n``.
    """

    name: str
    unit: str = ""
    turn: float = 0.0
    truth: Floats | None = None
    own: Floats
    instead: Floats

    DERIVED: ClassVar = ("mean_own", "mean_instead", "mean", "low", "high", "std", "same_sign")

    @property
    def difference(self) -> Floats:
        """``(N, H)``, with the others minus with the own."""
        off = self.instead - self.own
        return (off + self.turn / 2.0) % self.turn - self.turn / 2.0 if self.turn else off

    @property
    def mean_own(self) -> Floats:
        """``(H,)``, mean over the streams; of an angle in [0, a full turn)."""
        return self._mean(self.own)

    @property
    def mean_instead(self) -> Floats:
        """``(H,)``, the same with the other actions."""
        return self._mean(self.instead)

    @property
    def mean(self) -> Floats:
        """``(H,)``, mean difference over the streams."""
        return np.asarray(self.difference.mean(axis=0))

    @property
    def low(self) -> Floats:
        """``(H,)``, lower end of Student's 95 % interval of the mean difference; NaN of one."""
        return interval_curve(self.difference).low

    @property
    def high(self) -> Floats:
        """``(H,)``, its upper end."""
        return interval_curve(self.difference).high

    @property
    def std(self) -> Floats:
        """``(H,)``, standard deviation of the difference over the streams; NaN of one."""
        if len(self.own) < 2:
            return np.full(self.own.shape[1], np.nan)
        return np.asarray(self.difference.std(axis=0, ddof=1))

    @property
    def same_sign(self) -> Floats:
        """``(H,)`` in [0, 1], streams whose difference has the sign of the mean; 0 of no mean."""
        signs = np.sign(self.difference)
        agreeing = (signs == np.sign(self.mean)) & (signs != 0)
        return np.asarray(agreeing.mean(axis=0))

    def _mean(self, values: Floats) -> Floats:
        if not self.turn:
            return np.asarray(values.mean(axis=0))
        angle = values * (2.0 * np.pi / self.turn)
        mean = np.arctan2(np.sin(angle).mean(axis=0), np.cos(angle).mean(axis=0))
        return np.asarray(mean * (self.turn / (2.0 * np.pi)) % self.turn)


@dataclass(frozen=True, kw_only=True)
class Counterfactual:
    """``N`` pairs of futures of ``H`` steps from one start: with the own and with other actions.

    Attributes:
        key: Episode.
        first_step: First step of the context.
        changes: The other actions, in words.
        num_changed: Actions that are changed; behind them come the episode's own.
        beyond_data: Part of the changed actions that hold a number beyond the range of the training
            data, where a model has seen nothing.
        context_frames: ``(C, cameras, height, width, 3)`` uint8, what was observed.
        truth_frames: ``(H, cameras, height, width, 3)`` uint8, what happened.
        own_frames: ``(N, H, cameras, height, width, 3)`` uint8, imagined with the own actions.
        instead_frames: The same with the others.
        own: What the model imagined with the own actions, on the host; its ``actions`` are them.
        instead: The same with the others.
        quantities: State, reward, end, task state (where the model has a readout) and doubt (where
            it has such a head), by name.
    """

    key: str
    first_step: int
    changes: tuple[str, ...]
    num_changed: int
    beyond_data: float
    context_frames: NDArray[np.uint8]
    truth_frames: NDArray[np.uint8]
    own_frames: NDArray[np.uint8]
    instead_frames: NDArray[np.uint8]
    own: Rollout
    instead: Rollout
    quantities: dict[str, Quantity]

    @property
    def step(self) -> int:
        """Step of the episode whose action is the first changed one; the last that is observed."""
        return self.first_step + len(self.context_frames) - 1


def imagine_instead(
    model: TokenWorldModel, reader: ShardReader, config: CounterfactualConfig
) -> Counterfactual:
    """Imagine a recorded stretch with its own and with other actions.

    The heads for doubt and task state are taken where the model has them; none is trained.

    Raises:
        TokenwmError: The data do not fit the model, episode or steps are not there, or a change is
            none.
        CheckpointError: A head is damaged.
    """
    settings = config.imagine
    start = read_start(model, reader, settings)
    own = choose_actions(model, reader, start.key, settings)
    horizon, num_futures = len(own), settings.num_samples
    num_changed = horizon if config.num_changed is None else config.num_changed
    changed = changed_actions(model, reader, own[:num_changed], config.changes)
    other = np.concatenate([changed, own[num_changed:]])  # which would round none of them
    if model.doubt is None and has_head(model, DOUBT):
        model.doubt = Doubt.load(model)
    rollout = model.imagine(
        start.context,
        np.repeat(np.stack([own, other]), num_futures, axis=0),
        sampling=settings.sampling,
        seed=settings.seed,
        noise_streams=torch.arange(num_futures).repeat(2),
    )
    frames = model.decode_frames(rollout)
    begin = settings.first_step + settings.num_context_frames
    is_own = slice(num_futures)
    return Counterfactual(
        key=start.key,
        first_step=settings.first_step,
        changes=config.changes,
        num_changed=num_changed,
        beyond_data=_beyond(model, other[:num_changed]),
        context_frames=start.frames,
        truth_frames=reader.frames(start.key, begin, begin + horizon),
        own_frames=frames[is_own].cpu().numpy(),
        instead_frames=frames[num_futures:].cpu().numpy(),
        own=rollout.rows(is_own).to("cpu"),
        instead=rollout.rows(slice(num_futures, None)).to("cpu"),
        quantities=_quantities(model, reader, rollout, frames, (start.key, begin)),
    )


def _beyond(model: TokenWorldModel, actions: NDArray[Any]) -> float:
    tokenizer = model.vocabulary.action
    if not isinstance(tokenizer, BinTokenizer):
        return 0.0
    return float(tokenizer.outside(actions).any(axis=1).mean())


def _quantities(
    model: TokenWorldModel,
    reader: ShardReader,
    rollout: Rollout,
    frames: torch.Tensor,
    place: tuple[str, int],
) -> dict[str, Quantity]:
    """All numbers of a rollout whose first half are the own actions, by name.

    ``place`` is the episode, and the step that the first imagined one stands beside.
    """
    (key, begin), horizon = place, rollout.frame_nll.shape[1]
    features = reader.manifest.features
    truth = reader.arrays(key, None, begin - 1, begin + horizon)
    caused = {name: truth[name][:-1] for name in ("reward", "terminated") if name in truth}
    found: list[Quantity] = []

    def add(name: str, values: Any, told: Any = None, unit: str = "", turn: float = 0.0) -> None:
        """Add one number, ``(2N, H)``."""
        own, instead = np.split(np.asarray(values, dtype=np.float64), 2)
        known = None if told is None else np.asarray(told, dtype=np.float64)
        found.append(
            Quantity(name=name, unit=unit, turn=turn, truth=known, own=own, instead=instead)
        )

    if rollout.state is not None:
        about, state = features["state"], rollout.state.cpu().numpy()
        names = about.names or _numbered("state", state.shape[-1])
        for index, (name, unit) in enumerate(zip(names, about.unit_of_each, strict=True)):
            told = truth["state"][1:, index] if "state" in truth else None
            add(f"state.{name}" if about.names else name, state[..., index], told, unit)
    if rollout.reward is not None:
        add("reward", rollout.reward.cpu(), caused.get("reward"))
    add("ends", rollout.termination_probability.cpu(), caused["terminated"])
    if has_head(model, READOUT):
        readout = Readout(load_head(model, READOUT))
        read = readout.read(frames.flatten(0, 1)).reshape(len(frames), horizon, -1)
        code = readout.code
        for index, (name, unit, turn) in enumerate(
            zip(code.names, code.units, code.turns, strict=True)
        ):
            told = truth[FIELD][1:, index] if FIELD in truth else None
            add(name, read[..., index], told, unit, turn)
    if rollout.doubt is not None:
        add("doubt", rollout.doubt.cpu(), unit="nats per token")
    return {quantity.name: quantity for quantity in found}


def _numbered(name: str, count: int) -> Sequence[str]:
    return [f"{name}_{index}" for index in range(count)]
