"""Training of the frame tokenizer."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.windows import Batch
from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import TokenwmError
from tokenwm.parent import Parent
from tokenwm.tokenizer.frames import (
    FrameTokenizer,
    FrameTokenizerConfig,
    codebook_usage,
    has_collapsed,
)
from tokenwm.tokenizer.perceptual import PerceptualLoss
from tokenwm.training import OptimizerConfig, TrainingModule

logger = logging.getLogger(__name__)

LEAST_TOKENS_OF_CROP = 4
"""With two tokens a side nearly all of a square is its border (docs/results/tokens.md)."""


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the reconstruction loss.

    Attributes:
        l2_weight: Weight of the mean squared error of pixels in [0, 1], times 4 so that it is of
            the size of L1.
        l1_weight: Weight of the mean absolute error.
        perceptual_weight: Weight of LPIPS; needs the ``perceptual`` extra and its downloaded
            weights.
        consistency_weight: Weight of the mean squared distance, in bins, between the latents of a
            noisy frame and of the clean one; needs ``noise`` and the quantizer ``fsq``.
    """

    l2_weight: float = 1.0
    l1_weight: float = 0.0
    perceptual_weight: float = 0.0
    consistency_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = (
            self.l2_weight,
            self.l1_weight,
            self.perceptual_weight,
            self.consistency_weight,
        )
        if min(weights) < 0 or self.l1_weight + self.l2_weight <= 0:
            raise TokenwmError(
                f"loss weights must not be negative, and l1 or l2 must count: {self}"
            )


def mean_frames(root: str | Path, manifest: Manifest) -> Tensor:
    """Mean frame of every camera over the train split, ``(cameras, 3, H, W)`` float32 in [0, 1]."""
    means = []
    for camera in manifest.cameras:
        name = manifest.statistics[f"frames.{camera}"]["mean_frame"]["file"]
        mean = np.load(Path(root) / name, allow_pickle=False)
        means.append(torch.from_numpy(mean).movedim(-1, 0) / 255.0)
    return torch.stack(means)


def begin_from(parent: Parent, tokenizer: FrameTokenizer) -> None:
    """Give a new tokenizer all weights of its parent, and its mean frame: codes keep their meaning.

    Raises:
        CheckpointError: The two differ in cameras, image size or sizes.
    """
    old = parent.model
    assert isinstance(old, FrameTokenizer)
    remedy = "prepare the data with the same cameras and image_size"
    parent.require_same("the number of cameras is", old.num_cameras, tokenizer.num_cameras, remedy)
    parent.require_same("image_size is", old.image_size, tokenizer.image_size, remedy)
    before, now = (asdict(replace(each.config, code_margin=0.0)) for each in (old, tokenizer))
    parent.require_same_sizes("model.tokenizer", before, now)
    tokenizer.load_state_dict(old.state_dict())


class FrameTokenizerModule(TrainingModule):
    """Lightning module of the frame tokenizer. Image size and cameras come from the data.

    Args:
        tokenizer: Sizes of the tokenizer.
        loss: Weights of the loss.
        optimizer: Optimizer and schedule.
        max_shift: In training every frame is moved at random by up to so many pixels; for few
            frames, which are learned by heart otherwise.
        noise: In training up to so many levels of noise, of 255, are added to every value of every
            pixel that is encoded; what is to be reconstructed stays clean.
        crop: In training only squares with sides of so many pixels are taken of frames, around what
            differs from the mean frame: a multiple of a token's side, at least four times that, or
            it learns borders only. 0 takes whole frames.
        compile: Whether to train through ``torch.compile`` (needs a C++ compiler on a CPU; not with
            ``vq``, whose dead-code revival breaks the graph).
    """

    tokenizer: FrameTokenizer

    def __init__(
        self,
        tokenizer: FrameTokenizerConfig = FrameTokenizerConfig(),  # noqa: B008 (frozen)
        loss: TokenizerLossConfig = TokenizerLossConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        max_shift: int = 0,
        noise: int = 0,
        crop: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(optimizer)
        if max_shift < 0:
            raise TokenwmError(f"max_shift={max_shift}; use 0 (none) or a number of pixels")
        if noise < 0:
            raise TokenwmError(f"noise={noise}; use 0 (none) or a number of levels, of 255")
        side = tokenizer.downsampling
        if crop and (crop % side or crop < LEAST_TOKENS_OF_CROP * side):
            raise TokenwmError(
                f"crop={crop}; use 0 (whole frames), or a multiple of {side}, the pixels of a "
                f"token's side, from {LEAST_TOKENS_OF_CROP * side} on"
            )
        if crop > 0 and tokenizer.attention_stages:
            raise TokenwmError(
                f"crop={crop} trains on parts of frames, but attention_stages="
                f"{tokenizer.attention_stages} look at whole ones; use crop=0"
            )
        if loss.consistency_weight > 0 and (noise == 0 or tokenizer.quantizer != "fsq"):
            raise TokenwmError(
                f"loss.consistency_weight={loss.consistency_weight} compares noisy frames with "
                f"clean ones in the bins of fsq, but noise={noise}, "
                f"quantizer={tokenizer.quantizer}; use noise=1 or more and fsq, or "
                "loss.consistency_weight=0"
            )
        if compile and tokenizer.quantizer == "vq":
            raise TokenwmError(
                "compile=true does not work with quantizer=vq; use fsq, or compile=false"
            )
        self.tokenizer_config = tokenizer
        self.loss_config = loss
        self.max_shift, self.noise, self.crop = max_shift, noise, crop
        self.compile_training = compile
        self._counts: Tensor | None = None
        self._perceptual = PerceptualLoss() if loss.perceptual_weight > 0 else None

    def configure_model(self) -> None:
        """Build the tokenizer for the data at hand, once the process group exists."""
        if hasattr(self, "tokenizer"):
            return
        if self.device_mesh is not None:
            raise TokenwmError(
                "the frame tokenizer is too small to be spread over ranks; train it with "
                "--trainer.strategy ddp"
            )
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, EpisodeDataModule):
            raise TokenwmError(
                "the tokenizer is trained with an EpisodeDataModule over frame shards"
            )
        manifest = datamodule.manifest
        if manifest.kind != "frames":
            raise TokenwmError(
                f"{datamodule.root} holds {manifest.kind}; the tokenizer is trained on frame "
                "shards made by 'tokenwm prepare'"
            )
        shape = manifest.features[f"frames.{manifest.cameras[0]}"].shape if manifest.cameras else ()
        if not shape:
            raise TokenwmError(f"{datamodule.root} has no camera; a frame tokenizer needs one")
        size = (shape[0], shape[1])
        self.tokenizer = FrameTokenizer(self.tokenizer_config, size, len(manifest.cameras))
        if self.parent is None or self.trainer.state.fn != "fit":
            self.tokenizer.mean_frame.copy_(mean_frames(datamodule.folder, manifest))
        else:
            begin_from(self.parent, self.tokenizer)
        self.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile_training:
            self.tokenizer.compile()

    def model_options(self) -> dict[str, Any]:
        """Options of the model, see :meth:`TrainingModule.model_options`."""
        return {
            "tokenizer": asdict(self.tokenizer_config),
            "loss": asdict(self.loss_config),
            "max_shift": self.max_shift,
            "noise": self.noise,
            "crop": self.crop,
        }

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step; returns the loss."""
        loss, values = self._losses(batch)
        self.log_all("train", values, len(batch.keys))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Log reconstruction and count codes."""
        _, values = self._losses(batch)
        self.log_all("val", values, len(batch.keys))

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Losses on the test split."""
        _, values = self._losses(batch)
        self.log_all("test", values, len(batch.keys))

    def on_validation_epoch_end(self) -> None:
        """Log codebook usage over the whole validation set."""
        self._log_usage("val")

    def on_test_epoch_end(self) -> None:
        """Log codebook usage over the whole test set."""
        self._log_usage("test")

    def _losses(self, batch: Batch) -> tuple[Tensor, list[tuple[str, Any]]]:
        assert batch.frames is not None
        frames = batch.frames[
            batch.step_valid
        ]  # (B, cameras, H, W, 3); padding would be counted twice
        config = self.loss_config
        if self.training:
            consistency = config.consistency_weight > 0
            output = self.tokenizer(frames, self.max_shift, self.noise, consistency, self.crop)
        else:
            output = self.tokenizer(frames)
        error = output.reconstruction - output.target
        loss = (4.0 * config.l2_weight * error.square() + config.l1_weight * error.abs()).mean()
        loss = loss + output.commitment_loss + config.consistency_weight * output.inconsistency
        if self._perceptual is not None:
            loss = loss + config.perceptual_weight * self._perceptual(
                output.reconstruction, output.target
            )
        with torch.no_grad():
            squared = error.square().mean()
            psnr = -10.0 * squared.clamp(min=1e-10).log10()
            counts = torch.bincount(
                output.indices.flatten(), minlength=self.tokenizer.codebook_size
            )
            usage, perplexity = codebook_usage(counts)
        values: list[tuple[str, Any]] = [("loss", loss.detach()), ("psnr", psnr)]
        if self.training:
            values += [("codebook_usage", usage), ("codebook_perplexity", perplexity)]
        else:
            self._counts = counts if self._counts is None else self._counts + counts
        return loss, values

    def _log_usage(self, stage: str) -> None:
        if self._counts is None:
            return
        usage, perplexity = codebook_usage(self._counts)
        self._counts = None
        self.log(f"{stage}/codebook_usage", usage, sync_dist=True)
        self.log(f"{stage}/codebook_perplexity", perplexity, sync_dist=True)
        if self.trainer.sanity_checking:
            return
        if has_collapsed(usage, float(self.trainer.callback_metrics[f"{stage}/psnr"])):
            logger.warning(
                "dead codebook: only %.1f %% of %d codes are in use (perplexity %.1f); lower the "
                "learning rate, use quantizer fsq, or a smaller codebook_size",
                100 * usage,
                self.tokenizer.codebook_size,
                perplexity,
            )
