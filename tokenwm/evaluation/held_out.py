"""The figures of one model on held-out data, as a sweep compares them: likelihood, rollouts."""

from pathlib import Path

import torch

from tokenwm.checkpoint import load_world_model
from tokenwm.data.loading.order import evenly_spaced
from tokenwm.data.loading.windows import WindowDataset, collate
from tokenwm.data.shards.manifest import Manifest
from tokenwm.evaluation.config import EvaluationConfig
from tokenwm.evaluation.evaluate import evaluate
from tokenwm.imagination.token_world_model import load
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.losses import losses_of

WINDOWS_AT_ONCE = 64
FIELDS = ("frame_tokens", "state_tokens", "action_tokens", "reward", "terminated")
PSNR_HORIZONS = (1, 5, 10)
"""Imagined steps after which pictures are compared, where episodes are long enough."""


@torch.no_grad()
def held_out_loss(
    model: Path, data: Path | str, *, num_steps: int, num_windows: int, device: str = "cpu"
) -> dict[str, float]:
    """Likelihood and accuracy of the frame tokens of the val split, teacher-forced, in float32.

    Args:
        model: Folder of the world model.
        data: Folder of token shards.
        num_steps: Steps of a window, as in training.
        num_windows: Windows, evenly spaced over the split; all if it has fewer.
        device: Where.

    Returns:
        ``loss``, nats per token, and ``frame_accuracy`` and ``changed_accuracy``, in [0, 1].
    """
    world_model = load_world_model(model, device).world_model.eval()
    first = WindowDataset(data, "val", num_steps)
    dataset = WindowDataset(
        data, "val", num_steps, [name for name in FIELDS if name in first.fields]
    )
    windows = evenly_spaced(len(dataset), num_windows)
    totals = dict.fromkeys(("frame_nll", "frame_accuracy", "changed_accuracy"), 0.0)
    weights = dict.fromkeys(totals, 0.0)
    for begin in range(0, len(windows), WINDOWS_AT_ONCE):
        batch = collate([dataset[index] for index in windows[begin : begin + WINDOWS_AT_ONCE]])
        batch = batch.to(device)
        assert batch.frame_tokens is not None and batch.action_tokens is not None
        assert batch.terminated is not None
        tokens = Tokens(batch.frame_tokens, batch.state_tokens, batch.action_tokens)
        losses = losses_of(
            world_model,
            tokens,
            step_valid=batch.step_valid,
            action_valid=batch.action_valid,
            reward=batch.reward,
            terminated=batch.terminated,
        )
        valid = batch.step_valid[:, 1:, None].expand_as(tokens.frame[:, 1:])
        changed = valid & (tokens.frame[:, 1:] != tokens.frame[:, :-1])
        for name in totals:
            weight = float((changed if name == "changed_accuracy" else valid).sum())
            totals[name] += weight * float(getattr(losses, name))
            weights[name] += weight
    means = {name: total / max(1.0, weights[name]) for name, total in totals.items()}
    return {"loss": means.pop("frame_nll"), **means}


def downstream_metrics(model: Path, frames: Path | str, device: str = "cpu") -> dict[str, float]:
    """Figures of open-loop imagination on the val split (docs/evaluation.md).

    Args:
        model: Folder of the world model.
        frames: Folder or URL of the frame shards that the tokens were made of.
        device: Where.

    Returns:
        ``rollout_psnr@h`` in dB, ``effective_horizon`` in steps where the val split has enough
        episodes to claim one, and ``reward_error`` (mean absolute, over all horizons) where
        rewards were recorded.

    Raises:
        TokenwmError: The frames do not fit the model, or no episode is long enough.
    """
    context = EvaluationConfig.num_context_frames
    episodes = Manifest.load(frames).episodes
    longest = max((item.num_steps for item in episodes if item.split == "val"), default=0)
    config = EvaluationConfig(
        split="val",
        # At least 1; evaluate refuses episodes that are too short.
        imagination_horizon=max(1, min(PSNR_HORIZONS[-1], longest - context)),
        num_starts=2,
        num_examples=0,
        readout=False,
    )
    found = evaluate(load(model, torch.device(device)), frames, config)
    psnr = found.psnr["model"].mean
    horizons = [horizon for horizon in PSNR_HORIZONS if horizon <= config.imagination_horizon]
    metrics = {f"rollout_psnr@{horizon}": float(psnr[horizon - 1]) for horizon in horizons}
    if found.can_claim:
        metrics["effective_horizon"] = float(found.horizons.effective_horizon)
    if found.reward_error is not None:
        metrics["reward_error"] = float(found.reward_error["model"].mean.mean())
    return metrics
