"""Trust in imagined episodes: limits on doubt and surprise, and the step at which they cut.

A limit is set on held-out episodes, one number each: the largest value over the steps of the
episode imagined from a random start with its own recorded actions, as the episodes that are judged
are imagined. By split conformal prediction at most a share ``alpha`` of episodes that are like the
held-out ones is beyond any of the limits, whatever the model is worth. Episodes with other actions
are not like them: where they go on within the limits, the model is as sure of them as it is of what
really happened. That does not make them right.

Source: Vovk, Gammerman and Shafer (2005), Algorithmic Learning in a Random World; split conformal.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import Start, load_starts, recordings, spread
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.shapes import is_number, shown

MOST_EPISODES, ROWS_AT_ONCE = 200, 16
"""Held-out episodes that limits are set on, at most, and how many of them are imagined at once."""
HELD_OUT_STREAMS = 2**32
"""Number of their first noise stream; imagined episodes have those from 0 on."""
ENDS = 0.5
"""Probability from which on an action ends an imagined episode."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TrustLimits:
    """Limits beyond which an imagined step is not trusted.

    Attributes:
        surprise: Of the model at what it drew, nats per token; None for no limit.
        doubt: Of its heads about the step, nats per token; None for no limit.
        alpha: Share of episodes like the held-out ones that may be beyond one of those that were
            set on these; 0 where all were given.
        num_episodes: Held-out episodes that they were set on.
        set_on_held_out: Names of those that were.

    Raises:
        TokenwmError: A limit is below zero or no number.
    """

    surprise: float | None = None
    doubt: float | None = None
    alpha: float = 0.0
    num_episodes: int = 0
    set_on_held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("surprise", "doubt"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value >= 0):
                raise TokenwmError(f"{name}={shown(value)}; use a limit of 0 or more, or None")


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """The trusted part of one imagined episode.

    Attributes:
        num_steps: Imagined steps from the first on.
        verdict: ``whole``, ``ended`` by an action that ends the task, or ``cut``.
        reason: Why it goes no further; empty of a whole one.
    """

    num_steps: int
    verdict: str
    reason: str = ""


def trusted_steps(rollout: Rollout, row: int, limits: TrustLimits) -> Trusted:
    """Judge one row of a rollout on the host: the steps before the first that breaks a limit."""
    horizon = rollout.frame_nll.shape[1]
    ends = np.flatnonzero(rollout.termination_probability[row].numpy() >= ENDS)
    last = int(ends[0]) + 1 if len(ends) else horizon
    for name, values, limit in (
        ("surprise", rollout.frame_nll, limits.surprise),
        ("doubt", rollout.doubt, limits.doubt),
    ):
        if values is None or limit is None:
            continue
        beyond = np.flatnonzero(~(values[row, :last].numpy() <= limit))  # NaN is beyond, too
        if len(beyond):
            last = int(beyond[0])
            reason = f"{name} {float(values[row, last]):.3g} at step {last + 1}, limit {limit:.3g}"
            cut = Trusted(num_steps=last, verdict="cut", reason=reason)
            if last == 0:
                return cut
            ends = ends[:0]
    if last == horizon and not len(ends):
        return Trusted(num_steps=horizon, verdict="whole")
    if len(ends):
        return Trusted(num_steps=last, verdict="ended", reason="its action ends the task")
    return cut


def conformal_limit(scores: Floats, alpha: float) -> float:
    """The limit that a new score like these exceeds with probability ``alpha`` at most.

    Args:
        scores: ``(n,)``, of episodes that are exchangeable with the new one.
        alpha: In (0, 1).

    Raises:
        TokenwmError: There are too few of them: at least ``1 / alpha - 1`` are needed.
    """
    rank = math.ceil((len(scores) + 1) * (1.0 - alpha) - 1e-9)
    if rank > len(scores):
        raise TokenwmError(
            f"{len(scores)} held-out episode(s) are too few for alpha={alpha:g}; at least "
            f"{math.ceil(1.0 / alpha - 1.0 - 1e-9)} are needed: use a larger --alpha, give "
            "--max-surprise (and --max-doubt), or --alpha 0 for no limits"
        )
    return float(np.sort(scores)[rank - 1])


def set_limits(
    model: TokenWorldModel,
    reader: ShardReader,
    names: Sequence[str],
    *,
    num_context: int,
    horizon: int,
    alpha: float,
    sampling: SamplingConfig,
    seed: int,
) -> TrustLimits:
    """Set limits on held-out episodes.

    With two limits each has half of ``alpha``.

    Args:
        model: The model, with its doubt if that is limited.
        reader: The episodes.
        names: Of ``surprise`` and ``doubt``, those to set.
        num_context: Observed steps before imagining.
        horizon: Imagined steps.
        alpha: In (0, 1).
        sampling: Settings for drawing ids.
        seed: Of starts and noise.

    Raises:
        TokenwmError: There are too few held-out episodes that are long enough.
    """
    found: list[Floats] = []
    for rollout in _imagined_held_out(model, reader, num_context, horizon, sampling, seed):
        values = {"surprise": rollout.frame_nll, "doubt": rollout.doubt}
        chosen = [value for name in names if (value := values[name]) is not None]
        found.append(np.stack([value.amax(1).double().cpu().numpy() for value in chosen]))
    scores = np.concatenate(found, axis=1) if found else np.zeros((len(names), 0))
    limits = {
        name: conformal_limit(row, alpha / len(names))
        for name, row in zip(names, scores, strict=True)
    }
    return TrustLimits(
        surprise=limits.get("surprise"),
        doubt=limits.get("doubt"),
        alpha=alpha,
        num_episodes=scores.shape[1],
        set_on_held_out=tuple(names),
    )


def held_out_split(manifest: Manifest) -> str:
    """The split that limits are set on: ``val``, else ``test``.

    Raises:
        TokenwmError: Neither has episodes.
    """
    for split in ("val", "test"):
        if manifest.num_episodes(split):
            return split
    raise TokenwmError(
        f"{manifest.name} has no held-out episodes to set limits on; give --max-surprise (and "
        "--max-doubt), or --alpha 0 for no limits"
    )


def _imagined_held_out(
    model: TokenWorldModel,
    reader: ShardReader,
    num_context: int,
    horizon: int,
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[Rollout]:
    """Futures of held-out episodes with their own actions, one start of each recording."""
    steps = num_context + horizon
    keys = recordings(reader.keys(held_out_split(reader.manifest)))
    keys = [key for key in keys if reader.episode(key).num_steps >= steps]
    keys = [keys[place] for place in spread(len(keys), MOST_EPISODES)] if keys else []
    generator = np.random.default_rng(seed)
    rows = [
        Start(
            key=key, first_step=int(generator.integers(reader.episode(key).num_steps - steps + 1))
        )
        for key in keys
    ]
    for first in range(0, len(rows), ROWS_AT_ONCE):
        starts = load_starts(reader, rows[first : first + ROWS_AT_ONCE], num_context, horizon)
        # Luck of their own each, and none of an episode's that will be judged by them.
        streams = torch.arange(first, first + len(starts)) + HELD_OUT_STREAMS
        yield model.imagine(
            starts.context(model),
            starts.future_actions,
            sampling=sampling,
            seed=seed,
            noise_streams=streams,
        )
