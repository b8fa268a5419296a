"""LeWM (Maes et al. 2026, arXiv:2603.19312) trained on recorded episodes of Push-T, and planning.

Its network, loss and CEM are those of the package torch-world (0.2.0), which the user installs;
windows, the clock, in what numbers actions are given, and a readout that says what is in its
embeddings, are here. Used by ``tools/compare_lewm.py``.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from push_pairs import NEAR, TURN
from torch import Tensor, nn

from tokenwm.data.shards.reader import ShardReader

try:
    from torch_world.models import LeWM
    from torch_world.nn import CLSEncoder
except ImportError:  # tests of what is ours do without
    LeWM = CLSEncoder = None

HISTORY = 3
"""Frames that its predictor sees, as in the paper."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels, as in the paper: ImageNet's."""
FRAMES_AT_ONCE = 256
READOUT_FRAMES, READOUT_STEPS, READOUT_BATCH = 20_000, 3_000, 512
"""Of the training of :class:`Lewm`'s readout."""
WARM_UP = 0.02
"""Share of the time in which the learning rate rises."""


class ActionOffsets:
    """Actions as LeWM's own Push-T has them, relative to the pusher, divided by their deviation.

    Of a step the actions are side by side, and all are relative to where the pusher is before it.

    Args:
        state: ``(N, 2)`` where the pusher is, px.
        action: ``(N, A)`` what was done there, px.
    """

    def __init__(self, state: Tensor, action: Tensor) -> None:
        offsets = self._relative(state, action, -1.0)
        self.mean, self.std = offsets.mean(0), offsets.std(0).clamp(min=1e-6)

    def encode(self, state: Tensor, action: Tensor) -> Tensor:
        """``(..., 2)``, ``(..., A)`` → ``(..., A)``."""
        return (self._relative(state, action, -1.0) - self.mean) / self.std

    def decode(self, state: Tensor, offsets: Tensor) -> Tensor:
        """The inverse, within the table."""
        return self._relative(state, offsets * self.std + self.mean, 1.0).clamp(0.0, 512.0)

    @staticmethod
    def _relative(state: Tensor, action: Tensor, sign: float) -> Tensor:
        return action + sign * state.repeat(*[1] * (state.ndim - 1), action.shape[-1] // 2)


class Windows:
    """All windows of ``length`` steps of a split's episodes.

    Attributes:
        frames: ``(N, H, W, 3)`` uint8.
        action: ``(N, A)`` px.
        state: ``(N, 2)`` px.
        truth: ``(N, 3)`` the block's centre of mass, px, and its angle, radians.
        first: First steps of windows.
    """

    def __init__(self, reader: ShardReader, split: str, length: int) -> None:
        keys = [key for key in reader.keys(split) if reader.episode(key).num_steps >= length]
        if not keys:
            sys.exit(f"{reader.root}: no episode of split {split} has {length} steps")
        arrays = [reader.arrays(key, ["action", "state", "task_state"]) for key in keys]
        self.action, self.state, self.truth = (
            torch.from_numpy(np.concatenate([each[name] for each in arrays])).float()
            for name in ("action", "state", "task_state")
        )
        self.frames = torch.from_numpy(np.concatenate([reader.frames(key)[:, 0] for key in keys]))
        counts = np.array([len(each["action"]) for each in arrays])
        ends = counts.cumsum()
        self.first = torch.from_numpy(
            np.concatenate(
                [np.arange(e - n, e - length + 1) for n, e in zip(counts, ends, strict=True)]
            )
        )
        self.length = length

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """``(size, length)`` numbers of steps."""
        chosen = torch.randint(len(self.first), (size,), generator=generator)
        return self.first[chosen][:, None] + torch.arange(self.length)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is chosen here; all else is the package's default, and the paper's.

    Attributes:
        patch: Side of a patch, px.
        depth: Layers of the encoder: 6 are the package's default, 12 the paper's ViT-tiny.
        batch: Windows in a step.
        learning_rate: At its highest; it rises and falls as half a cosine.
        weight_decay: Of AdamW.
        seed: Of weights and draws.
    """

    patch: int = 8
    depth: int = 6
    batch: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 1e-3
    seed: int = 0


class Lewm:
    """LeWM, in what numbers it is told actions, and a readout of its embeddings.

    Args:
        settings: What is chosen.
        side: Of its pictures, px.
        width: Numbers of a step's actions.
    """

    def __init__(self, settings: Settings, side: int, width: int) -> None:
        if LeWM is None:
            sys.exit("this needs the package torch-world: pip install --no-deps torch-world==0.2.0")
        torch.manual_seed(settings.seed)
        self.settings, self.side, self.width = settings, side, width
        encoder = CLSEncoder(side, settings.patch, 192, depth=settings.depth, num_heads=3)
        self.model = LeWM(encoder, width, history=HISTORY)
        self.readout = nn.Sequential(
            nn.Linear(192, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 6)
        )
        self.offsets: ActionOffsets
        self.told: dict[str, Any] = {}

    def train(self, windows: Windows, seconds: float) -> None:
        """Train it for so long, in bfloat16 where its products allow it, and its readout after."""
        chosen = self.settings
        self.offsets = ActionOffsets(windows.state, windows.action)
        generator = torch.Generator().manual_seed(chosen.seed)
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
        )
        self.model.train()
        began, losses = time.monotonic(), []
        while (done := (time.monotonic() - began) / seconds) < 1.0:
            rate = min(done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * done), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * chosen.learning_rate
            rows = windows.draw(chosen.batch, generator)
            actions = self.offsets.encode(windows.state[rows], windows.action[rows])
            with torch.autocast("cpu", torch.bfloat16):
                found = self.model(_pixels(windows.frames[rows]), actions)
            optimizer.zero_grad()
            found["loss"].backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            losses.append([found[name].item() for name in ("pred_loss", "sigreg_loss")])
            if not len(losses) % 100:
                print(len(losses), round(done, 3), losses[-1], file=sys.stderr, flush=True)
        self.model.eval()
        last = np.mean(losses[-max(1, len(losses) // 10) :], axis=0)
        self.told = {
            "steps": len(losses),
            "seconds": time.monotonic() - began,
            "parameters": sum(weights.numel() for weights in self.model.parameters()),
            "prediction_loss": float(last[0]),
            "sigreg_loss": float(last[1]),
        }
        self._train_readout(windows)

    def _train_readout(self, windows: Windows) -> None:
        """What of the pose is in an embedding, in units of success (20 px), sine and cosine."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        rows = torch.randperm(len(windows.frames), generator=generator)[:READOUT_FRAMES]
        seen = self.embed(windows.frames[rows])
        wanted = pose_numbers(windows.state[rows], windows.truth[rows])
        optimizer = torch.optim.AdamW(self.readout.parameters(), lr=1e-3)
        for step in range(READOUT_STEPS):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1.0 - step / READOUT_STEPS)
            drawn = torch.randint(len(rows), (READOUT_BATCH,), generator=generator)
            loss = (self.readout(seen[drawn]) - wanted[drawn]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """``(N, H, W, 3)`` uint8 → ``(N, 192)``."""
        return torch.cat(
            [
                self.model.encode(_pixels(part)[:, None])[:, 0]
                for part in torch.split(frames, FRAMES_AT_ONCE)
            ]
        )

    @torch.no_grad()
    def errors(self, windows: Windows, most: int = 600) -> dict[str, dict[str, float]]:
        """Medians of what the readout gets wrong, by steps ahead; the first is of the true picture.

        Over windows in which the block moves by 13 px or 15 degrees, as in ``evaluate``.
        """
        ahead = windows.length - 1
        last = windows.first + ahead
        moved = (windows.truth[last] - windows.truth[windows.first])[:, :2].norm(dim=-1)
        turned = _turn(windows.truth[last, 2] - windows.truth[windows.first, 2])
        moving = windows.first[(moved >= 13.0) | (turned >= math.radians(15.0))]
        chosen = moving[torch.linspace(0, len(moving) - 1, min(most, len(moving))).long()]
        now = self.embed(windows.frames[chosen])[:, None]
        steps = chosen[:, None] + torch.arange(windows.length)
        actions = self.offsets.encode(windows.state[steps], windows.action[steps])
        imagined = self.model.rollout(now, actions[:, :ahead])
        found = {}
        for step in range(windows.length):
            read = self.readout(imagined[:, step])
            state, truth = windows.state[steps[:, step]], windows.truth[steps[:, step]]
            pose = pose_numbers(state, truth)
            found[str(step)] = {
                "pusher_px": float((read - pose)[:, :2].norm(dim=-1).median() * NEAR),
                "block_px": float((read - pose)[:, 2:4].norm(dim=-1).median() * NEAR),
                "block_degrees": float(_turn(_angle(read) - _angle(pose)).median().rad2deg()),
                "windows": float(len(chosen)),
            }
        return found

    def save(self, file: Path) -> None:
        """Everything, in one file of tensors and plain values."""
        kept = {
            "settings": asdict(self.settings),
            "sizes": [self.side, self.width],
            "model": self.model.state_dict(),
            "readout": self.readout.state_dict(),
            "offsets": [self.offsets.mean, self.offsets.std],
            "told": self.told,
        }
        torch.save(kept, file)

    @classmethod
    def load(cls, file: Path) -> "Lewm":
        """What :meth:`save` kept."""
        kept = torch.load(file, weights_only=True)
        lewm = cls(Settings(**kept["settings"]), *kept["sizes"])
        lewm.model.load_state_dict(kept["model"])
        lewm.readout.load_state_dict(kept["readout"])
        lewm.model.eval()
        lewm.offsets = ActionOffsets(torch.zeros(2, 2), torch.zeros(2, kept["sizes"][1]))
        lewm.offsets.mean, lewm.offsets.std = kept["offsets"]
        lewm.told = kept["told"]
        return lewm


class Cost:
    """A :class:`Lewm` to its CEM: its rollouts, and another cost of them.

    Args:
        lewm: Whose rollouts.
        distance: Of embeddings ``(B, T, 192)`` and the goal's ``(B, 192)``: ``(B, T)``.
        best: Whether the step that is nearest counts, or the last.
    """

    def __init__(
        self, lewm: Lewm, distance: Callable[[Tensor, Tensor], Tensor], *, best: bool
    ) -> None:
        self.rollout, self.distance, self.best = lewm.model.rollout, distance, best
        self.observed = 0

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        """``(B,)``; ``observed`` steps are no part of what is imagined."""
        if not self.best:
            return self.distance(z[:, -1:], goal)[:, 0]
        return self.distance(z[:, self.observed :], goal).amin(1)


def embedding_distance(z: Tensor, goal: Tensor) -> Tensor:
    """Mean squared difference, LeWM's own cost."""
    return (z - goal[:, None]).square().mean(-1)


def pose_distance(lewm: Lewm, z: Tensor, goal: Tensor) -> Tensor:
    """What success is about, as the readout sees it: 20 px and 20 degrees count as 1 each."""
    read, wanted = lewm.readout(z), lewm.readout(goal)[:, None]
    turn = _turn(_angle(read) - _angle(wanted)) / TURN
    place: Tensor = (read - wanted)[..., :4].norm(dim=-1)
    return place + turn


def pose_numbers(state: Tensor, truth: Tensor) -> Tensor:
    """Pusher and block, in units of success, and the angle's sine and cosine: ``(..., 6)``."""
    angle = truth[..., 2:3]
    return torch.cat([state / NEAR, truth[..., :2] / NEAR, angle.sin(), angle.cos()], -1)


def _angle(pose: Tensor) -> Tensor:
    return torch.atan2(pose[..., 4], pose[..., 5])


def _turn(difference: Tensor) -> Tensor:
    """Size of a difference of angles, radians, at most pi."""
    return ((difference + math.pi).remainder(2.0 * math.pi) - math.pi).abs()


def _pixels(frames: Tensor) -> Tensor:
    """``(..., H, W, 3)`` uint8 → ``(..., 3, H, W)`` float32, normalised."""
    return ((frames.float() / 255.0 - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, -3)
