"""Imagined episodes as a source that ``prepare`` makes frame shards of.

So they are made by any number of workers, resumed after any kill, and the same whatever made them.
An episode is a function of the settings and its number: it begins with a recorded step, the last of
the context, all others are imagined, and it ends where trust ends.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.checkpoint import model_folder, read_provenance, read_vocabulary_of
from tokenwm.control.proposals import ActionSpace
from tokenwm.data.episode import Episode, Scalar
from tokenwm.data.readers.base import (
    EpisodeFormat,
    EpisodeRef,
    Gap,
    Recognised,
    SourceDescription,
)
from tokenwm.data.readers.pictures.frames import ArrayFrames
from tokenwm.data.readers.recorded.recording import Recording, to_episode
from tokenwm.data.shards.manifest import manifest_sha256
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import EpisodeError, TokenwmError
from tokenwm.heads.doubt import NAME as DOUBT
from tokenwm.heads.doubt import Doubt
from tokenwm.heads.folder import has_head
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import RecordedStarts, Start, load_starts
from tokenwm.imagination.token_world_model import TokenWorldModel, load
from tokenwm.policies.cloning import GoalPolicy
from tokenwm.shapes import is_number, is_whole, shown
from tokenwm.synthesis.actions import (
    KINDS,
    NEED_RECORDS,
    Luck,
    other_actions,
    perturbed,
    planned_actions,
    random_actions,
    roll_policy,
)
from tokenwm.synthesis.lerobot.export import SOURCE_COLUMNS, optional_columns
from tokenwm.synthesis.trust import Trusted, TrustLimits, trusted_steps


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """Settings of imagined episodes; a source of a recipe that is never written as YAML.

    Attributes:
        model: Folder of the world model.
        data: Frame shards with the starts: a folder or a URL.
        actions: ``records`` (what was done from there on, perturbed), ``other`` (what was done in
            another episode), ``policy`` (the action prior acts), ``planner`` (a plan towards what
            was recorded ``horizon`` steps later) or ``random``.
        noise: Of ``records``: standard deviation in those of the data; 0 repeats them.
        num_episodes: Episodes to imagine; those that end too early are not kept.
        num_context: ``C``, observed steps before imagining; the last is the episode's first.
        horizon: Most imagined steps.
        least_steps: Episodes with fewer imagined steps are not kept.
        split: Split that starts are taken from.
        batch_size: Episodes imagined at once.
        seed: Seed of starts, actions and noise.
        sampling: Settings for drawing ids.
        limits: Where trust ends.
        device: Where the model computes.
    """

    model: str
    data: str
    actions: str = "records"
    noise: float = 0.3
    num_episodes: int = 100
    num_context: int = 4
    horizon: int = 20
    least_steps: int = 2
    split: str = "train"
    batch_size: int = 16
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    limits: TrustLimits = field(default_factory=TrustLimits)
    device: str = "cpu"
    type: Literal["imagined"] = "imagined"

    records: ClassVar[bool] = True  # as much is made as is asked for, and all of one kind

    def __post_init__(self) -> None:
        if self.actions not in KINDS:
            raise TokenwmError(f"actions={self.actions!r}; use one of {', '.join(KINDS)}")
        for name in ("num_episodes", "num_context", "horizon", "least_steps", "batch_size"):
            if not is_whole(getattr(self, name)):
                raise TokenwmError(f"{name}={shown(getattr(self, name))}; use 1 or more")
        if not is_whole(self.seed, least=0):
            raise TokenwmError(f"seed={shown(self.seed)}; use a whole number, 0 or more")
        if not is_number(self.noise) or self.noise < 0:
            raise TokenwmError(f"noise={shown(self.noise)}; use a number, 0 or more")
        if self.least_steps > self.horizon:
            raise TokenwmError(
                f"least_steps={self.least_steps} of horizon={self.horizon}; use no more than that"
            )

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        """None: no file is of this kind."""
        return None

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "SynthesisSource":
        """Make the source; the model is loaded when an episode is."""
        return SynthesisSource(self, episode_format)


class SynthesisSource:
    """Episodes that a world model imagines; a :class:`~tokenwm.data.readers.base.Source`."""

    num_phases = 1

    def __init__(self, config: SynthesisConfig, episode_format: EpisodeFormat) -> None:
        self.config, self.format = config, episode_format
        self.num_together = config.batch_size
        self.reader = ShardReader(config.data)
        self.num_recorded = config.horizon if config.actions in NEED_RECORDS else 0
        steps = config.num_context + self.num_recorded
        keys = self.reader.keys(config.split)
        self.lengths = {key: self.reader.episode(key).num_steps - steps for key in keys}
        self.lengths = {key: length for key, length in self.lengths.items() if length >= 0}
        if not self.lengths:
            raise TokenwmError(
                f"no episode of split {config.split!r} of {config.data} has {steps} steps; use a "
                "smaller --context or --horizon, or another --split"
            )
        self._model: TokenWorldModel | None = None
        self._prior: GoalPolicy | None = None
        self._columns: tuple[str, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_prior": None}

    @property
    def model(self) -> TokenWorldModel:
        """The world model, with its doubt where it has that head."""
        if self._model is None:
            self._model = load(self.config.model, self.config.device)
            if has_head(self._model, DOUBT):
                self._model.doubt = Doubt.load(self._model)
        return self._model

    def episodes(self) -> Sequence[EpisodeRef]:
        """One reference for each episode to imagine."""
        return [
            EpisodeRef(key=f"imagined_{index:06d}", index=index, num_rows=self.config.horizon + 1)
            for index in range(self.config.num_episodes)
        ]

    def gaps(self) -> Sequence[Gap]:
        """None: a model gives what is asked for."""
        return ()

    def load(self, ref: EpisodeRef) -> Episode:
        """Imagine one episode.

        Raises:
            EpisodeError: Trust ends too early in it.
        """
        (result,) = self.load_together([ref])
        if isinstance(result, EpisodeError):
            raise result
        return result

    def load_together(self, refs: Sequence[EpisodeRef]) -> list[Episode | EpisodeError]:
        """Imagine several at once; each is what it is by itself, up to near-ties of decoding."""
        config, luck = (
            self.config,
            Luck(seed=self.config.seed, indices=tuple(r.index for r in refs)),
        )
        rows = [self._start(luck.generator(row, 0)) for row in range(len(refs))]
        starts = load_starts(self.reader, rows, config.num_context, self.num_recorded)
        rollout, origins = self._imagine(starts, luck)
        frames = self.model.decode_frames(rollout).cpu().numpy()
        rollout = rollout.to("cpu")
        results: list[Episode | EpisodeError] = []
        for row, ref in enumerate(refs):
            trusted = trusted_steps(rollout, row, config.limits)
            try:
                if trusted.num_steps < config.least_steps:
                    raise EpisodeError(
                        f"episode {ref.key}: trust ends after {trusted.num_steps} imagined "
                        f"step(s), at least {config.least_steps} are wanted: {trusted.reason}"
                    )
                recording = self._recording(starts, rollout, frames, row, trusted, origins[row])
                rate, number = self.format.control_rate, self.describe().num_actions
                results.append(to_episode(recording, ref, self.format, rate, number))
            except EpisodeError as error:
                results.append(error)
        return results

    def _start(self, generator: np.random.Generator) -> Start:
        """A recorded step, all of them alike."""
        sizes = np.array(list(self.lengths.values())) + 1
        place = int(generator.integers(sizes.sum()))
        episode = int(np.searchsorted(sizes.cumsum(), place, side="right"))
        first = place - int(sizes[:episode].sum())
        return Start(key=list(self.lengths)[episode], first_step=first)

    def _imagine(self, starts: RecordedStarts, luck: Luck) -> tuple[Rollout, list[str]]:
        """Futures of the starts, and in words the source of the actions of each."""
        config, model = self.config, self.model
        space = ActionSpace.of(model.vocabulary)
        if config.actions == "policy":
            if self._prior is None:
                self._prior = GoalPolicy.load(model)
            rollout = roll_policy(model, self._prior, starts, config.horizon, luck, config.sampling)
            return rollout, ["policy: the action prior"] * len(starts)
        if config.actions == "planner":
            plans = planned_actions(model, starts, config.horizon, luck)
        actions, origins = [], []
        for row, start in enumerate(starts.rows):
            drawn = luck.torch_generator(row, 1)
            if config.actions == "random":
                chosen, origin = random_actions(space, config.horizon, drawn), "random"
            elif config.actions == "planner":
                chosen, origin = plans[row], f"planner, towards step +{config.horizon}"
            elif config.actions == "other":
                numbers = luck.generator(row, 1)
                keys = self.reader.keys(config.split)
                chosen, key = other_actions(self.reader, keys, start.key, config.horizon, numbers)
                origin = f"episode {key}"
            else:
                own = torch.from_numpy(np.ascontiguousarray(starts.future_actions[row]))
                chosen = perturbed(own, space, config.noise, drawn) if config.noise else own
                origin = f"records, noise {config.noise:g}"
            actions.append(chosen)
            origins.append(origin)
        rollout = model.imagine(
            starts.context(model),
            torch.stack(actions),
            sampling=config.sampling,
            seed=config.seed,
            noise_streams=luck.noise_streams,
        )
        return rollout, origins

    def _recording(
        self,
        starts: RecordedStarts,
        rollout: Rollout,
        frames: NDArray[np.uint8],
        row: int,
        trusted: Trusted,
        origin: str,
    ) -> Recording:
        """One imagined episode: a recorded step, then the trusted ones."""
        count, now = trusted.num_steps, starts.num_context - 1
        start, features = starts.rows[row], self.reader.manifest.features
        pictures = np.concatenate([starts.frames[row, now:][:1].numpy(), frames[row, :count]])
        state = None
        if rollout.state is not None and starts.state is not None:
            imagined = rollout.state[row, :count].numpy()
            state = np.concatenate([starts.state[row, now:][:1], imagined])
        reward = None
        if rollout.reward is not None and "reward" in features:
            reward = rollout.reward[row, :count].numpy()
        terminated = np.zeros(count, dtype=np.bool_)
        terminated[-1] = trusted.verdict == "ended"
        return Recording(
            num_rows=count + 1,
            action=rollout.actions[row, :count].cpu().numpy(),
            frames={
                camera: ArrayFrames(images=pictures[:, index], name="imagined pictures")
                for index, camera in enumerate(self.reader.manifest.cameras)
            },
            state=state,
            reward=reward,
            terminated=terminated,
            task=str(self.reader.metadata(start.key).get("task") or ""),
            metadata=self._about(start, rollout, row, trusted, origin),
        )

    def _about(
        self, start: Start, rollout: Rollout, row: int, trusted: Trusted, origin: str
    ) -> dict[str, Scalar]:
        """The provenance of one episode, in its metadata; by step as JSON text."""
        model, config = self.model, self.config
        count = trusted.num_steps

        def by_step(values: torch.Tensor | None) -> str | None:
            if values is None:
                return None
            return json.dumps([float(f"{value:.4g}") for value in values[row, :count].tolist()])

        return {
            "synthetic": True,
            "model_sha256": str(model.provenance.get("weights_sha256")),
            "tokenizer_hash": model.vocabulary.tokenizer_hash,
            "source_episode": start.key,
            "source_step": start.first_step + config.num_context - 1,
            "seed": config.seed,
            "actions_from": origin,
            "surprise_by_step": by_step(rollout.frame_nll),
            "doubt_by_step": by_step(rollout.doubt),
            "verdict": trusted.verdict,
            "verdict_reason": trusted.reason,
        }

    def describe(self) -> SourceDescription:
        """Names and units of the real episodes."""
        manifest = self.reader.manifest
        action, state = manifest.features["action"], manifest.features.get("state")
        return SourceDescription(
            state_names=() if state is None else state.names,
            action_names=action.names,
            state_units="" if state is None else state.units,
            action_units=action.units,
            num_actions=action.num_values,
            actions_per_step=manifest.actions_per_step,
            licence=str(manifest.provenance.get("licence", "")),
        )

    def provenance(self) -> dict[str, Any]:
        """Model and real episodes, with the hashes of both; no model is loaded for it."""
        folder = model_folder(Path(self.config.model))
        if self._columns is None:
            self._columns = optional_columns(self.reader)
        return {
            "source": f"imagined by {self.config.model} from steps of {self.config.data}",
            "source_checksum": manifest_sha256(self.config.data),
            "source_name": self.reader.manifest.name,
            "model_sha256": read_provenance(folder)["weights_sha256"],
            "tokenizer_hash": read_vocabulary_of(folder).tokenizer_hash,
            SOURCE_COLUMNS: list(self._columns),
        }
