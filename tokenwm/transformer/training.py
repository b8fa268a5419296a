"""Training of the world model on token shards."""

from typing import Any

from torch import Tensor

from tokenwm.data.datamodule import EpisodeDataModule
from tokenwm.data.loader import Batch
from tokenwm.errors import TokenwmError
from tokenwm.sequence.token_shards import read_vocabulary
from tokenwm.training import OptimizerConfig, TrainingModule
from tokenwm.transformer.world_model import Losses, Tokens, WorldModel, WorldModelConfig


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
        self.world_model = WorldModel(self.model_config, vocabulary)
        if self.compile_training:
            self.world_model.compile()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step; returns the loss."""
        losses = self._losses(batch)
        self.log_all("train", _named(losses), len(batch.keys))
        return losses.total

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Log teacher-forced losses and accuracies."""
        self.log_all("val", _named(self._losses(batch)), len(batch.keys))

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """The same on the test split."""
        self.log_all("test", _named(self._losses(batch)), len(batch.keys))

    def _losses(self, batch: Batch) -> Losses:
        assert batch.terminated is not None
        return self.world_model.losses(
            tokens_of(batch),
            action_valid=batch.action_valid,
            reward=batch.reward,
            terminated=batch.terminated,
        )


def tokens_of(batch: Batch) -> Tokens:
    """The tokens of a batch of token shards."""
    assert batch.frame_tokens is not None and batch.action_tokens is not None
    return Tokens(batch.frame_tokens, batch.state_tokens, batch.action_tokens)


def _named(losses: Losses) -> list[tuple[str, Any]]:
    values = losses._asdict()
    return [("loss", values.pop("total").detach()), *values.items()]
