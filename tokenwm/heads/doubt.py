"""Doubt: how far a few small heads disagree about the next frame, each trained on other episodes.

Where there was data they agree, however much luck the world has; where there was none each goes its
own way. A model's own entropy cannot tell the two apart.

Source: Jensen–Shannon divergence of an ensemble on detached features, as in Simulus (Cohen et al.
2025), after Shyam et al. (2019), MAX. Deviation: digits of codes are predicted each by itself, from
features and action alone, and every head sees a half of the recordings.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.heads.actions import ActionCode
from tokenwm.heads.eyes import Lessons, see_with
from tokenwm.heads.folder import load_head
from tokenwm.heads.head import Head, HeadConfig, Meaning
from tokenwm.heads.pairs import in_parts, meaning_of
from tokenwm.heads.recorded import Recorded
from tokenwm.heads.training import fit_head
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import check_shape
from tokenwm.transformer.embeddings import digits_of

NAME = "doubt"
BATCH, LEARNING_RATE = 256, 2e-3
SHARE_SEEN = 0.5
"""Share of the recordings that each head sees, with all their phases."""


class Doubt:
    """A measure of how little is known of what an action does: heads that disagree about it.

    ::

        model.doubt = tokenwm.Doubt.load(model)  # every rollout now has rollout.doubt

    Args:
        head: As :func:`fit_doubt` or :func:`~tokenwm.heads.folder.load_head` gives it.
        vocabulary: That of the model.

    Raises:
        TokenwmError: The head is no doubt, or one for another vocabulary.
    """

    def __init__(self, head: Head, vocabulary: Vocabulary) -> None:
        (stay,) = meaning_of(head, NAME, "stay")
        device = next(head.parameters()).device
        self.head, self.action = head, ActionCode(vocabulary.action, device)
        try:
            self.digits = _Digits(vocabulary, head.config.members, stay, device)
        except (TypeError, ValueError) as error:
            raise TokenwmError(f"this head is no {NAME}: {error}") from error
        if head.config.num_outputs != self.digits.num_outputs:
            raise TokenwmError(f"this head is no {NAME} for tokens of this vocabulary")

    @classmethod
    def load(cls, model: TokenWorldModel) -> "Doubt":
        """The doubt that ``tokenwm heads`` trained for a model.

        Raises:
            CheckpointError: There is none.
        """
        return cls(load_head(model, NAME), model.vocabulary)

    @torch.inference_mode()
    def __call__(self, features: Tensor, actions: Tensor) -> Tensor:
        """Disagreement, ``(B,)`` float32, nats per token: ``H(mean of p) - mean of H(p)``.

        Digits of a token add up.

        Args:
            features: ``(B, E)``, of where the actions are taken.
            actions: ``(B, A)`` in the units of the data, or ids.

        Raises:
            ShapeError: They have another shape.
        """
        return torch.cat(
            [self._disagreement(features[s], actions[s]) for s in in_parts(len(actions))]
        )

    def _disagreement(self, features: Tensor, actions: Tensor) -> Tensor:
        total = features.new_zeros(len(features))
        for known in self.log_probabilities(features, actions):
            mean = known.logsumexp(1) - math.log(known.shape[1])  # (B, K, values)
            each = -(known.exp() * known).sum(-1).mean(1)  # (B, K)
            total = total + (-(mean.exp() * mean).sum(-1) - each).mean(1)
        return total.clamp(min=0.0)

    def log_probabilities(self, features: Tensor, actions: Tensor) -> list[Tensor]:
        """Beliefs of each head about each digit of the next frame's tokens.

        Returns:
            For each digit ``(B, members, K, values)`` float32, nats.
        """
        num_features = self.head.config.input_shape[0] - self.action.num_inputs
        check_shape("features", features, (len(actions), num_features))
        inputs = torch.cat([features, self.action.inputs(actions)], dim=1)
        codes = features[:, : math.prod(self.head.config.grid)]
        return self.digits.log_probabilities(self.head(inputs), self.digits.of_codes(codes))


class _Digits:
    """Digits of the tokens of a frame, as the heads predict them.

    Args:
        vocabulary: That of the model.
        members: Heads.
        stay: For each digit ``(values, values)``, log-probability of each value after each other
            one, to which a head adds what it knows. Nothing for codes without digits.
        device: Where.
    """

    def __init__(
        self, vocabulary: Vocabulary, members: int, stay: Any, device: torch.device | str
    ) -> None:
        self.levels = vocabulary.code_levels or (vocabulary.codebook_size,)
        self.num_tokens, self.members = vocabulary.tokens_per_frame, members
        self.has_digits = bool(vocabulary.code_levels)
        self.stay = [torch.tensor(table, dtype=torch.float32, device=device) for table in stay]
        wanted = [(size, size) for size in self.levels] if self.has_digits else []
        if [tuple(table.shape) for table in self.stay] != wanted:
            raise ValueError("its table of digits is of other codes")

    @property
    def num_outputs(self) -> int:
        """Numbers that all heads together give."""
        return self.members * self.num_tokens * sum(self.levels)

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """``(..., K)`` ids → ``(..., K, digits)`` int64, the first digit the least significant."""
        return digits_of(tokens, self.levels)

    def of_codes(self, codes: Tensor) -> Tensor | None:
        """Codes of FSQ, ``(B, K * digits)`` in [-1, 1], → digits; None of other codes."""
        if not self.has_digits:
            return None
        levels = torch.tensor(self.levels, device=codes.device)
        codes = codes.reshape(len(codes), self.num_tokens, len(self.levels))
        digits = (codes * (levels // 2) + levels // 2).round().long()
        return digits.clamp(min=0).minimum(levels - 1)

    def log_probabilities(self, outputs: Tensor, now: Tensor | None) -> list[Tensor]:
        """Outputs of the heads and digits now → for each digit ``(B, members, K, values)``."""
        shape = (len(outputs), self.members, self.num_tokens, sum(self.levels))
        found = []
        for number, logits in enumerate(
            torch.split(outputs.reshape(shape), list(self.levels), dim=-1)
        ):
            known = logits if now is None else logits + self.stay[number][now[:, None, :, number]]
            found.append(known.log_softmax(-1))
        return found

    def nats(self, known: list[Tensor], following: Tensor) -> Tensor:
        """Surprise of each head at the digits that followed ``(B, K, digits)``: ``(B, members)``.

        Nats per token.
        """
        each = []
        for number, of_digit in enumerate(known):
            wanted = following[:, None, :, number : number + 1].expand(-1, self.members, -1, -1)
            each.append(-of_digit.gather(-1, wanted).squeeze(-1).mean(-1))
        return torch.stack(each).sum(0)


def fit_doubt(
    recorded: Recorded,
    vocabulary: Vocabulary,
    grid: tuple[int, int, int, int],
    *,
    num_steps: int,
    seconds: float = math.inf,
    members: int = 4,
    hidden: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    eyes: Lessons | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Doubt:
    """Train the heads of a doubt on recorded steps.

    Args:
        recorded: Steps of training episodes.
        vocabulary: That of the model.
        grid: Cameras, rows, columns and numbers of a code, :attr:`TokenWorldModel.code_grid`.
        num_steps: Optimizer steps.
        seconds: See :func:`fit_head`.
        members: Heads.
        hidden: Width of each.
        seed: Of weights, order and which episodes each head sees.
        device: Where.
        eyes: Of :func:`~tokenwm.heads.eyes.fit_eyes`, to begin with; None learns to see anew.
        progress: See :func:`fit_head`.
    """
    action = ActionCode(vocabulary.action)
    stay = _how_digits_change(recorded, vocabulary.code_levels)
    digits = _Digits(vocabulary, members, stay, device)
    config = HeadConfig(
        inputs="features",
        input_shape=(recorded.features.shape[1] + action.num_inputs,),
        num_outputs=digits.num_outputs,
        hidden=hidden,
        grid=(1, *grid),
        members=members,
    )

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        is_seen, tokens = targets[:, :members], targets[:, members:].reshape(len(targets), 2, -1)
        now, following = digits.of_tokens(tokens).unbind(1)
        known = digits.log_probabilities(outputs, now if digits.has_digits else None)
        nats = digits.nats(known, following)
        return (nats * is_seen).sum() / is_seen.sum().clamp(min=1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(config, Meaning(names=(), values={"kind": NAME, "stay": stay})).to(device)
        see_with(head, eyes)
        fit_head(
            head,
            _batches(recorded, action, members, torch.Generator().manual_seed(seed)),
            loss,
            num_steps=num_steps,
            seconds=seconds,
            learning_rate=LEARNING_RATE,
            progress=progress,
        )
    return Doubt(head, vocabulary)


def measure_doubt(doubt: Doubt, recorded: Recorded, seed: int = 0) -> dict[str, Any]:
    """Figures of a doubt on held-out episodes.

    Returns:
        ``doubt`` of the actions that were taken, beside ``shuffled_doubt`` of those taken at other
        steps, and ``told_apart``, the share of steps at which the latter is larger; ``nats``, the
        surprise per token of the heads' mean at the next frame, beside ``stay_nats`` of knowing
        only how digits change anyway (None of codes without digits).
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(doubt.head.parameters()).device
    rows, ahead = recorded.draw_pairs(1000, 1, 1, generator)
    features, actions = recorded.features[rows].to(device), recorded.actions[rows].to(device)
    taken = doubt(features, actions)
    others = doubt(features, actions[torch.randperm(len(actions), generator=generator)])
    digits = doubt.digits
    tokens = (recorded.frame_tokens[rows].to(device), recorded.frame_tokens[rows + 1].to(device))
    now, following = (digits.of_tokens(ids) for ids in tokens)
    with torch.inference_mode():
        known = doubt.log_probabilities(features, actions)
        known = [
            of.logsumexp(1, keepdim=True).expand_as(of) - math.log(of.shape[1]) for of in known
        ]
        nats = digits.nats(known, following)[:, 0].mean()
        nothing = features.new_zeros(len(features), digits.num_outputs)
        stay = (
            digits.nats(digits.log_probabilities(nothing, now), following)[:, 0].mean()
            if (digits.has_digits)
            else None
        )
    return {
        "doubt": float(taken.mean()),
        "shuffled_doubt": float(others.mean()),
        "told_apart": float((others > taken).float().mean()),
        "nats": float(nats),
        "stay_nats": None if stay is None else float(stay),
    }


def _how_digits_change(recorded: Recorded, levels: tuple[int, ...]) -> list[list[list[float]]]:
    """Logarithm of how often each value of a digit follows each other one, for each digit."""
    rows = torch.arange(len(recorded))[recorded.last > torch.arange(len(recorded))]
    tables = []
    for number, level in enumerate(levels):
        now, following = (
            digits_of(recorded.frame_tokens[steps], levels)[..., number]
            for steps in (rows, rows + 1)
        )
        pairs = torch.bincount((now * level + following).flatten(), minlength=level**2) + 0.1
        table = pairs.reshape(level, level).float()
        tables.append((table / table.sum(1, keepdim=True)).log().tolist())
    return tables


def _batches(
    recorded: Recorded, action: ActionCode, members: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs; and whether each head may see the row, tokens now and tokens then. Without end."""
    count = int(recorded.recording.max()) + 1
    place = torch.rand(count, members, generator=generator).argsort(0).argsort(0)
    # The same for a whole recording, and each head sees one at least.
    is_seen = (place < math.ceil(SHARE_SEEN * count))[recorded.recording].long()
    while True:
        rows, _ = recorded.draw_pairs(BATCH, 1, 1, generator)
        tokens = (recorded.frame_tokens[rows], recorded.frame_tokens[rows + 1])
        inputs = torch.cat([recorded.features[rows], action.inputs(recorded.actions[rows])], dim=1)
        yield inputs, torch.cat([is_seen[rows], *tokens], dim=1)
