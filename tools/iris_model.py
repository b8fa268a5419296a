"""IRIS trained on recorded episodes and imagining from recorded starts.

Its networks, losses and optimisers are those of a checkout (``tools/iris_checkout.py``); batches,
the clock and the loop of imagination are here. Used by ``tools/compare_iris.py``.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from iris_checkout import Checkout
from iris_data import Recording
from torch import Tensor, nn

FRAMES_AT_ONCE = 64


class KnownTokens:
    """The tokenizer in the world model's loss: encodes each frame once, IRIS does so every time.

    Args:
        iris: Its trained tokenizer.
        frames: ``(N, 3, H, W)`` uint8.
    """

    def __init__(self, iris: "Iris", frames: Tensor) -> None:
        self.iris, self.frames = iris, frames
        self.tokens = torch.full((len(frames), iris.tokens_per_frame), -1)

    def encode(self, rows: Tensor, should_preprocess: bool) -> SimpleNamespace:
        """``(B, L)`` numbers of frames → their tokens ``(B, L, K)``."""
        assert should_preprocess
        rows = rows.cpu()
        missing = rows[self.tokens[rows, 0] < 0]
        if len(missing):
            missing = torch.from_numpy(np.unique(missing.numpy()))
            self.tokens[missing] = self.iris.encode(self.frames[missing]).cpu()
        return SimpleNamespace(tokens=self.tokens[rows].to(self.iris.device))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What training came to.

    Attributes:
        steps: Optimizer steps.
        batch: Segments in a step.
        seconds: Wall clock.
        loss: Of the first step and the mean of the last tenth, by name.
    """

    steps: int
    batch: int
    seconds: float
    loss: dict[str, tuple[float, float]]


class Iris:
    """IRIS's tokenizer and world model, of the checkout's sizes.

    Args:
        checkout: Its code and settings.
        num_actions: Different actions.
        device: Where.
    """

    def __init__(self, checkout: Checkout, num_actions: int, device: torch.device) -> None:
        self.checkout, self.device = checkout, device
        self.training = checkout.settings("trainer")["training"]
        sizes = checkout.settings("tokenizer/default")
        coder = {k: v for k, v in sizes["encoder"]["config"].items() if k != "_target_"}
        models = checkout.tokenizer
        config = models.EncoderDecoderConfig(**coder)
        with contextlib.redirect_stdout(sys.stderr):  # it says how large its latent is
            encoder, decoder = models.Encoder(config), models.Decoder(config)
        self.tokenizer = models.Tokenizer(
            sizes["vocab_size"], sizes["embed_dim"], encoder, decoder
        ).to(device)
        self.transformer_config = checkout.transformer.TransformerConfig(
            **checkout.settings("world_model/default")
        )
        self.world_model = checkout.world_model.WorldModel(
            obs_vocab_size=sizes["vocab_size"],
            act_vocab_size=num_actions,
            config=self.transformer_config,
        ).to(device)
        self.resolution: int = coder["resolution"]
        self.tokens_per_frame: int = self.transformer_config.tokens_per_block - 1
        self.window: int = self.transformer_config.max_blocks

    def train_tokenizer(
        self, recording: Recording, seconds: float, batch: int | None, seed: int
    ) -> Stage:
        """Its losses on single frames, Adam."""
        options = self.training["tokenizer"]
        size, generator = batch or options["batch_num_samples"], torch.Generator().manual_seed(seed)

        def loss() -> Any:
            rows, _ = recording.draw(size, 1, generator)
            observations = recording.frames[rows].to(self.device).float() / 255.0
            return self.tokenizer.compute_loss({"observations": observations})

        parameters = list(self.tokenizer.parameters())
        optimizer = torch.optim.Adam(parameters, lr=self.training["learning_rate"])
        return _train(self.tokenizer, loss, optimizer, options["max_grad_norm"], seconds, size)

    def train_world_model(
        self, recording: Recording, seconds: float, batch: int | None, seed: int
    ) -> Stage:
        """Its losses on segments as long as its window, AdamW."""
        options = self.training["world_model"]
        size, generator = batch or options["batch_num_samples"], torch.Generator().manual_seed(seed)
        known = KnownTokens(self, recording.frames)

        def loss() -> Any:
            rows, drawn = recording.draw(size, self.window, generator)
            drawn = {name: values.to(self.device) for name, values in drawn.items()}
            return self.world_model.compute_loss({"observations": rows, **drawn}, known)

        optimizer = self.checkout.utils.configure_optimizer(
            self.world_model, self.training["learning_rate"], options["weight_decay"]
        )
        return _train(self.world_model, loss, optimizer, options["max_grad_norm"], seconds, size)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """``(N, 3, H, W)`` uint8 → ``(N, K)`` int64."""
        parts = [
            self.tokenizer.encode(part.to(self.device).float() / 255.0, should_preprocess=True)
            for part in torch.split(frames, FRAMES_AT_ONCE)
        ]
        return torch.cat([part.tokens for part in parts])

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """``(N, K)`` → ``(N, 3, H, W)`` float32 about [0, 1]."""
        side = round(self.tokens_per_frame**0.5)
        parts = []
        for part in torch.split(tokens, FRAMES_AT_ONCE):
            embedded = self.tokenizer.embedding(part).unflatten(1, (side, side)).movedim(-1, 1)
            parts.append(self.tokenizer.decode(embedded, should_postprocess=True))
        return torch.cat(parts)

    @torch.no_grad()
    def imagine(
        self,
        frames: Tensor,
        taken: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Imagine what actions lead to. Its window ends after so many steps and begins anew.

        IRIS's own environment begins anew with one frame; here with as many as were given.

        Args:
            frames: ``(B, C, K)`` tokens of observed frames.
            taken: ``(B, C - 1)`` actions between them.
            actions: ``(B, H)`` actions from the last one on.
            generator: Of sampling at temperature 1, as IRIS does; None is greedy.

        Returns:
            ``(B, H, K)`` tokens.
        """
        seen, done, num_context = list(frames.unbind(1)), list(taken.unbind(1)), frames.shape[1]
        per_step, most = self.tokens_per_frame + 1, self.transformer_config.max_tokens
        kept = None
        for action in actions.unbind(1):
            if kept is None or kept.size + per_step > most:
                kept = self.world_model.transformer.generate_empty_keys_values(
                    n=len(action), max_tokens=most
                )
                read: Iterable[Tensor] = seen[-num_context:-1]
                before = done[len(done) + 1 - num_context :]
                steps = [torch.cat([f, a[:, None]], 1) for f, a in zip(read, before, strict=True)]
                self.world_model(torch.cat([*steps, seen[-1]], 1), past_keys_values=kept)
            token, new = action[:, None], []
            for _ in range(self.tokens_per_frame):
                predicted = self.world_model(token, past_keys_values=kept)
                token = _draw(predicted.logits_observations[:, -1], generator)
                new.append(token)
            self.world_model(token, past_keys_values=kept)
            seen.append(torch.cat(new, 1))
            done.append(action)
        return torch.stack(seen[num_context:], 1)


def _draw(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """``(B, V)`` → ``(B, 1)``."""
    if generator is None:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)


def _train(
    module: nn.Module,
    loss: Callable[[], Any],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    seconds: float,
    batch: int,
) -> Stage:
    """Steps until another would end nearer to the time after it than before; one at least."""
    module.train()
    began, values = time.monotonic(), []
    while True:
        optimizer.zero_grad()
        found = loss()
        found.loss_total.backward()
        nn.utils.clip_grad_norm_(module.parameters(), max_norm)
        optimizer.step()
        values.append({"total": found.loss_total.item(), **found.intermediate_losses})
        used = time.monotonic() - began
        if used + 0.5 * used / len(values) > seconds:
            break
    module.eval()
    last = values[-max(1, len(values) // 10) :]
    return Stage(
        steps=len(values),
        batch=batch,
        seconds=used,
        loss={
            name: (first, sum(value[name] for value in last) / len(last))
            for name, first in values[0].items()
        },
    )
