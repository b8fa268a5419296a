"""Training of the world model on token shards."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.mixture import Stratum
from tokenwm.data.loading.windows import Batch
from tokenwm.errors import CorruptSampleError, TokenwmError
from tokenwm.sequence.token_shards import read_vocabulary, reward_range
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import warn_of_rewards_outside
from tokenwm.training import OptimizerConfig, TrainingModule
from tokenwm.transformer.fine_tuning import begin_from
from tokenwm.transformer.heads import ContinuousHead
from tokenwm.transformer.losses import Losses, losses_of
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

MAX_DYNAMICS_EPISODES = 500
"""Training episodes that linear dynamics are fitted to, about; more change nothing."""


class WorldModelModule(TrainingModule):
    """Lightning module of the world model. Vocabulary and layout come from the token shards.

    Args:
        model: Sizes of the world model.
        optimizer: Optimizer and schedule.
        compile: Whether to train through ``torch.compile`` (needs a C++ compiler on a CPU).
    """

    world_model: WorldModel

    def __init__(
        self,
        model: WorldModelConfig = WorldModelConfig(),  # noqa: B008 (frozen)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        compile: bool = False,
    ) -> None:
        super().__init__(optimizer)
        self.model_config = model
        self.compile_training = compile
        self._has_warned = False

    def configure_model(self) -> None:
        """Build the model for the tokens at hand."""
        if hasattr(self, "world_model"):
            return
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, EpisodeDataModule):
            raise TokenwmError(
                "the world model is trained with an EpisodeDataModule over token shards"
            )
        vocabulary = read_vocabulary(datamodule.manifest, datamodule.root)
        rewards = reward_range(reader.manifest for reader in datamodule.readers)
        self.world_model = WorldModel(self.model_config, replace(vocabulary, reward_range=rewards))
        if self.trainer.state.fn == "fit":  # elsewhere a checkpoint brings all weights
            if self.parent is None:
                fit_dynamics(self.world_model, datamodule.strata)
            else:
                begin_from(self.parent, self.world_model, datamodule.manifest)
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            if mesh.size() != self.trainer.world_size:
                raise TokenwmError(
                    f"data_parallel_size is {mesh.size()} on {self.trainer.world_size} processes; "
                    "give ModelParallelStrategy data_parallel_size = their number and "
                    "tensor_parallel_size = 1: tensors are not divided"
                )
            shard_weights(self.world_model, mesh)
        if self.compile_training:
            self.world_model.compile()

    def model_options(self) -> dict[str, Any]:
        """Options of the model, see :meth:`TrainingModule.model_options`."""
        return {"model": asdict(self.model_config)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the range that the bins of the reward head were laid over."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reward_range"] = self.world_model.vocabulary.reward_range

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take that range, whatever the data at hand say; older runs have none."""
        super().on_load_checkpoint(checkpoint)
        self.world_model.set_reward_range(checkpoint.get("reward_range"))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step; returns the loss."""
        losses = self._losses(batch)
        self.log_all("train", _named(losses), len(batch.keys))
        return losses.total

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Log teacher-forced losses and accuracies."""
        self._log_held_out("val", batch)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Losses on the test split."""
        self._log_held_out("test", batch)

    def _log_held_out(self, stage: str, batch: Batch) -> None:
        num_transitions = int(batch.step_valid[:, 1:].sum())  # what a batch's means are over
        self.log_all(stage, _named(self._losses(batch)), max(1, num_transitions))
        if batch.reward is not None and not self._has_warned:
            recorded = batch.reward[batch.action_valid].cpu().numpy()
            self._has_warned = warn_of_rewards_outside(self.world_model.vocabulary, recorded, stage)

    def _losses(self, batch: Batch) -> Losses:
        assert batch.terminated is not None
        return losses_of(
            self.world_model,
            tokens_of(batch),
            step_valid=batch.step_valid,
            action_valid=batch.action_valid,
            reward=batch.reward,
            terminated=batch.terminated,
        )


def shard_weights(model: WorldModel, mesh: DeviceMesh) -> None:
    """Spread weights, gradients and moments over ranks (FSDP, Zhao et al. 2023; torch's second).

    Asked for with Lightning's ``ModelParallelStrategy``. Each layer is gathered when it is needed.
    """
    for layer in model.transformer.layers:
        fully_shard(layer, mesh=mesh)
    # The losses use heads after `forward`, so what is not of a layer stays gathered until then.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def fit_dynamics(model: WorldModel, strata: Sequence[Stratum]) -> None:
    """Start the state head from least squares over the training episodes, if it has dynamics.

    Args:
        model: The model.
        strata: What is trained on; each gives as many episodes as it has of the windows.
    """
    if not isinstance(model.state_head, ContinuousHead):
        return
    steps: dict[str, list[Tensor]] = {"state": [], "action": [], "next_state": []}
    for stratum in strata:
        keys = stratum.windows.keys
        count = math.ceil(stratum.share * MAX_DYNAMICS_EPISODES)
        for key in keys[:: -(-len(keys) // count)]:
            try:
                arrays = stratum.windows.reader.arrays(key, ("state_tokens", "action_tokens"))
            except CorruptSampleError:
                continue  # the data module counts it, or stops, where it is drawn
            state = torch.from_numpy(arrays["state_tokens"].astype(np.int64))
            action = torch.from_numpy(arrays["action_tokens"].astype(np.int64))
            steps["state"].append(state[:-1])
            steps["action"].append(action[:-1])
            steps["next_state"].append(state[1:])
    if steps["state"]:
        model.state_head.dynamics.fit(**{name: torch.cat(parts) for name, parts in steps.items()})


def tokens_of(batch: Batch) -> Tokens:
    """The tokens of a batch of token shards."""
    assert batch.frame_tokens is not None and batch.action_tokens is not None
    return Tokens(batch.frame_tokens, batch.state_tokens, batch.action_tokens)


def _named(losses: Losses) -> list[tuple[str, Any]]:
    values = losses._asdict()
    return [("loss", values.pop("total").detach()), *values.items()]
