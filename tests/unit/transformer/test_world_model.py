"""The world model's heads and losses; what may influence what is tested in ``numerics``."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.small_models import (
    VOCABULARIES,
    random_tokens,
    small_vocabulary,
    small_world_model,
    teacher_forced,
)
from tokenwm.errors import TokenwmError
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.codes import DenseCodes
from tokenwm.transformer.frozen import freeze
from tokenwm.transformer.losses import Losses, losses_of
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

BATCH, NUM_STEPS = 3, 5


def make_batch(model: WorldModel, seed: int = 0) -> dict[str, Any]:
    """Random arguments of ``losses``: half of the tokens unchanged, the last step invalid."""
    tokens = random_tokens(model, BATCH, NUM_STEPS, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    frame = tokens.frame.clone()
    for step in range(1, NUM_STEPS):
        stays = torch.rand(frame[:, step].shape, generator=generator) < 0.5
        frame[:, step] = torch.where(stays, frame[:, step - 1], frame[:, step])
    valid = torch.ones(BATCH, NUM_STEPS, dtype=torch.bool)
    valid[:, -1] = False
    return {
        "tokens": tokens._replace(frame=frame),
        "action_valid": valid,
        "reward": torch.randn(BATCH, NUM_STEPS, generator=generator),
        "terminated": torch.rand(BATCH, NUM_STEPS, generator=generator) < 0.3,
    }


def weighted(model: WorldModel, **weights: float) -> WorldModel:
    model.config = replace(model.config, **weights)  # type: ignore[arg-type]
    return model


@torch.no_grad()
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_weight_of_changes_is_taken_off_probabilities(weight: float) -> None:
    """``q ∝ w p``: the odds of staying are ``w`` times larger in ``p``, all else is as it was."""
    model = weighted(small_world_model("frame"), changed_token_weight=weight)
    hidden, previous = torch.randn(5, 32), torch.arange(5)
    codes = model.frame_codes(hidden, previous)
    assert isinstance(codes, DenseCodes)
    logits, point = codes.logits, codes.point_logits
    p, q = logits.softmax(-1), point.softmax(-1)
    changes = torch.full_like(p, weight).scatter(-1, previous[:, None], 1.0)
    torch.testing.assert_close(q, (changes * p) / (changes * p).sum(-1, keepdim=True))


def test_weighted_training_finds_calibrated_probabilities() -> None:
    """One slot that stays with 0.7 and else takes one of three values: the loss finds just that."""
    truth = torch.tensor([0.7, 0.15, 0.1, 0.05])
    changes = torch.tensor([1.0, 4.0, 4.0, 4.0])
    previous = torch.zeros((), dtype=torch.int64)
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        point = DenseCodes(logits, previous, math.log(4.0)).point_logits
        (-(truth * changes) * point.log_softmax(-1)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(logits.detach().softmax(-1), truth, atol=2e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("draft_layers", [0, 2])
def test_losses_equal_hand_computed_ones(kind: str, draft_layers: int) -> None:
    weights = {
        "changed_token_weight": 3.0,
        "state_weight": 0.5,
        "reward_weight": 0.25,
        "termination_weight": 0.125,
        "draft_weight": 0.75,
    }
    model = weighted(small_world_model(kind, draft_layers=draft_layers), **weights)
    batch = make_batch(model)
    tokens: Tokens = batch["tokens"]
    predictions = model(tokens)
    frame_logits = teacher_forced(model, tokens)
    draft_logits = None
    if predictions.draft_hidden is not None:
        draft_logits = model.frame_logits(predictions.draft_hidden, tokens.frame[:, :-1])
    losses = losses_of(model, **batch)

    nlls, point_nlls, weight, right, changed = [], [], [], [], []
    state_nlls, rewards, ends, draft_nlls, draft_point_nlls = [], [], [], [], []
    for row in range(BATCH):
        for t in range(NUM_STEPS - 1):
            for slot in range(model.layout.num_frame_tokens):
                logits = frame_logits[row, t, slot]
                truth, before = tokens.frame[row, t + 1, slot], tokens.frame[row, t, slot]
                nlls.append(-logits.log_softmax(-1)[truth])
                logits = logits.clone()
                logits[before] -= math.log(3.0)
                point_nlls.append(-logits.log_softmax(-1)[truth])
                if draft_logits is not None:
                    draft = draft_logits[row, t, slot].clone()
                    draft_nlls.append(-draft.log_softmax(-1)[truth])
                    draft[before] -= math.log(3.0)
                    draft_point_nlls.append(-draft.log_softmax(-1)[truth])
                changed.append(float(truth != before))
                weight.append(1.0 + 2.0 * changed[-1])
                right.append(float(logits.argmax() == truth))
            if predictions.state_logits is not None and tokens.state is not None:
                for dimension in range(2):
                    logits = predictions.state_logits[row, t, dimension]
                    truth = tokens.state[row, t + 1, dimension]
                    state_nlls.append(-logits.log_softmax(-1)[truth])
            hidden = predictions.outcome_hidden[row, t]
            assert model.reward_head is not None
            rewards.append(model.reward_head.loss(hidden, batch["reward"][row, t]))
            probability = model.termination_logit(hidden).sigmoid()
            ended = bool(batch["terminated"][row, t])
            ends.append(-(probability if ended else 1 - probability).log())

    def mean(values: list[Any], weights: list[float] | None = None) -> Tensor:
        array = torch.tensor([float(v) for v in values])
        share = torch.ones(len(array)) if weights is None else torch.tensor(weights)
        return (array * share).sum() / share.sum()

    frame_loss = mean(point_nlls, weight)
    state_nll = mean(state_nlls) if state_nlls else torch.tensor(0.0)
    draft_loss = mean(draft_point_nlls, weight) if draft_layers else torch.tensor(0.0)
    expected = Losses(
        total=frame_loss
        + 0.5 * state_nll
        + 0.25 * mean(rewards)
        + 0.125 * mean(ends)
        + 0.75 * draft_loss,
        frame_nll=mean(nlls),
        frame_accuracy=mean(right),
        changed_accuracy=mean(right, changed),
        persistence_accuracy=1 - mean(changed),
        state_nll=state_nll,
        reward=mean(rewards),
        termination=mean(ends),
        draft_nll=mean(draft_nlls) if draft_layers else torch.tensor(0.0),
    )
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(losses, name), value, atol=1e-4, rtol=1e-4, msg=name)
    assert 0.2 < expected.persistence_accuracy < 0.8


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_window_over_the_beginning_is_a_shorter_window(kind: str) -> None:
    """Behind its last step nothing is predicted, but the outcome of its action counts."""
    model = small_world_model(kind)
    batch = make_batch(model)
    batch["action_valid"][:] = True
    short = {name: value[:, :3] for name, value in batch.items() if name != "tokens"}
    short["tokens"] = batch["tokens"].steps(slice(0, 3))
    valid = torch.arange(NUM_STEPS).expand(BATCH, -1) < 3
    padded = losses_of(model, **(batch | {"action_valid": valid}), step_valid=valid)
    for name, value in losses_of(model, **short)._asdict().items():
        torch.testing.assert_close(getattr(padded, name), value, msg=name)


@torch.no_grad()
def test_changed_tokens_count_for_more() -> None:
    """As if every changed token were there ``changed_token_weight`` times; means stay."""
    model = small_world_model("frame", has_reward=False)
    batch = make_batch(model) | {"reward": None}
    free = {"termination_weight": 0.0}
    plain = losses_of(weighted(model, changed_token_weight=1.0, **free), **batch)
    logits = teacher_forced(model, batch["tokens"])
    heavy = losses_of(weighted(model, changed_token_weight=1e6, **free), **batch)
    target, previous = batch["tokens"].frame[:, 1:], batch["tokens"].frame[:, :-1]
    nll = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    changed = (target != previous).flatten()
    torch.testing.assert_close(plain.total, nll.mean(), atol=1e-4, rtol=0)
    torch.testing.assert_close(heavy.total, nll[changed].mean(), atol=1e-4, rtol=0)
    assert heavy.frame_accuracy == plain.frame_accuracy  # of the point forecast
    assert abs(float(heavy.total - plain.total)) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_padding_counts_for_nothing(kind: str) -> None:
    """An episode that ends early gives the same losses whatever fills the window behind it."""
    model = small_world_model(kind)
    batch = make_batch(model)
    batch["action_valid"][1, 2:] = False  # steps 3 and 4 are padding
    reference = losses_of(model, **batch)

    other = make_batch(model, seed=7)
    for name, tensor in batch.items():
        if name == "tokens":
            for mine, theirs in zip(tensor, other["tokens"], strict=True):
                if mine is not None:
                    mine[1, 3:] = theirs[1, 3:]
        elif name != "action_valid":
            tensor[1, 2:] = other[name][1, 2:]
    for got, wanted in zip(losses_of(model, **batch), reference, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
    batch["reward"][1, 2:] = torch.nan  # a last step has none
    assert float(losses_of(model, **batch).reward) == pytest.approx(
        float(reference.reward), rel=1e-6
    )
    batch["reward"][1, 2:] = 0.0
    batch["action_valid"][1, 2:] = True
    assert abs(float(losses_of(model, **batch).total - reference.total)) > 1e-4


def test_padding_sends_no_gradient() -> None:
    model = small_world_model("frame+state")
    batch = make_batch(model)
    batch["action_valid"][:] = False
    losses = losses_of(model, **batch)
    assert float(losses.total.detach()) == 0.0
    losses.total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() and not g.any() for g in gradients)


def test_every_weight_gets_a_gradient() -> None:
    for kind in VOCABULARIES:
        model = small_world_model(kind)
        losses_of(model, **make_batch(model)).total.backward()
        silent = [
            n
            for n, p in model.named_parameters()
            if p.requires_grad and p.numel() and (p.grad is None or not p.grad.any())
        ]
        assert silent == [], kind


@torch.no_grad()
def test_learning_starts_at_persistence() -> None:
    """A fresh model repeats the previous frame, with the copy prior's certainty."""
    torch.manual_seed(0)
    config = WorldModelConfig(transformer=TransformerConfig(dim=32, num_layers=2, num_heads=2))
    model = WorldModel(config, small_vocabulary("frame"))
    tokens = random_tokens(model, 2, 4)
    logits = teacher_forced(model, tokens)
    expected = F.one_hot(tokens.frame[:, :-1], 32) * 8.0
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_copy_bonus_goes_to_the_previous_token() -> None:
    model = small_world_model("frame")
    hidden = torch.randn(5, 32)
    previous = torch.tensor([3, 0, 31, 7, 3])
    bonus = model.frame_logits(hidden, previous) - model.frame_head(hidden)
    expected = F.one_hot(previous, 32) * model.copy_head(hidden)
    torch.testing.assert_close(bonus, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_recorded_rewards_none_are_expected() -> None:
    model = small_world_model("frame", has_reward=False)
    batch = make_batch(model)
    assert float(losses_of(model, **batch).reward) == 0.0
    assert model.reward(torch.randn(4, 32)) is None


@torch.no_grad()
def test_the_last_action_is_read_for_its_outcome_only() -> None:
    model = small_world_model("frame+state")
    tokens = random_tokens(model, 2, NUM_STEPS)
    reference = model(tokens)
    tokens.action[:, -1] = (tokens.action[:, -1] + 1) % 16
    got = model(tokens)
    assert torch.equal(got.frame_hidden, reference.frame_hidden)
    assert torch.equal(got.outcome_hidden[:, :-1], reference.outcome_hidden[:, :-1])
    assert not torch.equal(got.outcome_hidden[:, -1], reference.outcome_hidden[:, -1])


@torch.no_grad()
def test_a_prefix_predicts_what_the_whole_does() -> None:
    model = small_world_model("frame+state", window=3)
    tokens = random_tokens(model, 2, 8)
    whole = model(tokens)
    for length in (2, 3, 4, 7):
        part = model(tokens.steps(slice(length)))
        expected = whole.frame_hidden[:, : length - 1]
        torch.testing.assert_close(part.frame_hidden, expected, atol=1e-5, rtol=0)


def test_one_step_predicts_nothing() -> None:
    model = small_world_model("frame")
    with pytest.raises(TokenwmError, match=r"1 step\(s\); at least 2"):
        model(random_tokens(model, 2, 1))


@pytest.mark.parametrize(
    "change",
    [{"changed_token_weight": 0.0}, {"state_weight": -1.0}, {"reward_weight": -0.1}],
    ids=str,
)
def test_impossible_weights_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(TokenwmError, match=next(iter(change))):
        WorldModelConfig(**change)  # type: ignore[arg-type]


def test_the_cache_has_the_models_sizes() -> None:
    model = small_world_model("frame+state", window=3)
    cache = model.new_cache(5)
    assert len(cache.keys) == 3 and cache.keys[0].shape == (5, 2, 4 * 10, 8)
    assert cache.keys[0].dtype == torch.float32
    assert freeze(model, torch.bfloat16).new_cache(5).keys[0].dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_frozen_model_predicts_the_same(kind: str) -> None:
    model = small_world_model(kind, draft_layers=1)
    tokens = random_tokens(model, 2, 5)
    frozen, half = freeze(model), freeze(model, torch.bfloat16)
    expected = teacher_forced(model, tokens)
    torch.testing.assert_close(teacher_forced(frozen, tokens), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(teacher_forced(half, tokens), expected, atol=0.1, rtol=0.05)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    state, action = tokens.state, tokens.action
    if state is not None and model.state_head is not None:
        hidden = torch.randn(2, 5, 32)
        for copy in (frozen, half):
            assert copy.state_head is not None
            torch.testing.assert_close(
                copy.state_head(hidden, state, action), model.state_head(hidden, state, action)
            )
    assert half.transformer.dtype == torch.bfloat16
    assert model.transformer.dtype == torch.float32


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_losses_reach_every_head(kind: str) -> None:
    model = small_world_model(kind, draft_layers=1).train()
    losses_of(model, **make_batch(model)).total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name.split(".")[0].endswith("head") and parameter.requires_grad and parameter.numel():
            assert parameter.grad is not None and parameter.grad.any(), name
