import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.small_models import binning, shake, small_vocabulary
from tokenwm.errors import TokenwmError
from tokenwm.tokenizer.actions import BinTokenizer, DiscreteTokenizer
from tokenwm.tokenizer.quantizer import FSQ_LEVELS, build_quantizer
from tokenwm.transformer.dynamics import LinearDynamics
from tokenwm.transformer.embeddings import (
    CodeEmbedding,
    FrameHints,
    ScalarEmbedding,
    center_features,
    digit_table,
    features_around,
    fourier_features,
    grid_positions,
)
from tokenwm.transformer.heads import (
    CodeHead,
    ContinuousHead,
    DiscreteHead,
    RewardHead,
    symexp,
    symlog,
)
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig


class Fixed(nn.Module):
    """Stands in for a linear map: gives the same logits whatever comes in."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, hidden: Tensor) -> Tensor:
        return self.logits.expand(*hidden.shape[:-1], -1)


# --- scalars


def test_fourier_features_are_the_value_its_sines_and_cosines() -> None:
    value = 0.3
    frequencies = [math.pi * 2.0**k for k in range(-1, 5)]
    octaves = list(enumerate(frequencies))
    expected = [value, *(0.5**k * math.sin(f * value) for k, f in octaves)]
    expected += [0.5**k * math.cos(f * value) for k, f in octaves]
    assert fourier_features(torch.tensor(value)).tolist() == pytest.approx(expected, abs=1e-5)


def test_coefficients_can_be_turned_to_features_around_another_place() -> None:
    torch.manual_seed(0)
    coefficients, place, x = torch.randn(5, 13), torch.randn(5) * 2, torch.randn(5) * 2
    around = (coefficients * fourier_features(x - place)).sum(-1)
    turned = (features_around(coefficients, place) * fourier_features(x)).sum(-1)
    torch.testing.assert_close(turned - place * coefficients[:, 0], around, atol=1e-4, rtol=0)


def test_bin_centres_are_scaled_by_the_range_of_the_training_data() -> None:
    edges = np.array([[-1.0, 0.0, 2.0, 3.0, 4.0]])
    scaled, _ = center_features(BinTokenizer(edges=edges, margin_bins=1))
    torch.testing.assert_close(scaled, torch.tensor([[-4 / 3, -1 / 3, 2 / 3, 4 / 3]]))


def test_bin_centres_are_scaled_by_the_outer_edges() -> None:
    edges = np.array([[0.0, 1.0, 4.0], [-10.0, 0.0, 10.0]])
    scaled, features = center_features(BinTokenizer(edges=edges))
    torch.testing.assert_close(scaled, torch.tensor([[-0.75, 0.25], [-0.5, 0.5]]))
    torch.testing.assert_close(features[..., 0], scaled)


@torch.no_grad()
def test_near_bins_are_near_and_dimensions_differ() -> None:
    torch.manual_seed(0)
    embedding = ScalarEmbedding(binning(2, 256), 32)
    base = embedding(torch.tensor([100, 100]))
    near, far = embedding(torch.tensor([101, 100])), embedding(torch.tensor([200, 100]))
    assert (near - base).norm() < 0.5 * (far - base).norm()
    assert not torch.allclose(embedding(torch.tensor([10, 50])), embedding(torch.tensor([50, 10])))


@torch.no_grad()
def test_values_in_the_margin_enter_as_the_end_of_the_training_data() -> None:
    embedding = ScalarEmbedding(binning(1, 16, margin_bins=4), 32)
    assert embedding(torch.tensor([[1], [15]])).isfinite().all()
    assert torch.equal(embedding(torch.tensor([[0], [15]])), embedding(torch.tensor([[3], [12]])))
    assert not torch.allclose(embedding(torch.tensor([4])), embedding(torch.tensor([3])))


def test_discrete_ids_are_told_apart() -> None:
    torch.manual_seed(0)
    embedding = ScalarEmbedding(DiscreteTokenizer(num_values=5, num_dimensions=2), 32)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    out = embedding(every)
    distances = torch.cdist(out, out) + torch.eye(25)
    assert distances.min() > 1e-3


# --- heads


@torch.no_grad()
def test_the_state_head_starts_at_persistence() -> None:
    """Before training the previous bin is the most likely one, and nearer ones are likelier."""
    head = ContinuousHead(binning(2, 8), binning(1), 16)
    nn.init.zeros_(head.coefficients.bias)
    nn.init.zeros_(head.dynamics.drift.bias)
    action = torch.tensor([[0], [9], [15]])
    logits = head(torch.randn(3, 16), torch.tensor([[2, 5]] * 3), action)
    assert logits.shape == (3, 2, 8)
    for dimension, previous in ((0, 2), (1, 5)):
        distance = (torch.arange(8) - previous).abs() * 2 / 8  # in units of half the range
        expected = -math.exp(4.0) * distance
        torch.testing.assert_close(logits[0, dimension], expected)


@torch.no_grad()
def test_the_state_head_is_a_sum_over_features() -> None:
    torch.manual_seed(0)
    head = ContinuousHead(binning(2, 8), binning(1), 16)
    shake(head, 0.5)
    hidden, previous, action = torch.randn(16), torch.tensor([1, 6]), torch.tensor([3])
    logits = head(hidden, previous, action)
    expected = head.dynamics(previous, action)
    coefficients = head.coefficients(hidden).view(2, -1)
    for dimension in range(2):
        for number in range(8):
            place = -1 + (2 * number + 1) / 8
            start = float(expected[dimension])
            smooth = (coefficients[dimension] * fourier_features(torch.tensor(place))).sum()
            prior = head.log_sharpness[dimension].exp() * abs(place - start)
            torch.testing.assert_close(logits[dimension, number], smooth - prior, atol=1e-4, rtol=0)


@torch.no_grad()
def test_increments_are_the_same_wherever_a_joint_is() -> None:
    """Ten bins further, beyond the training data too, the logits are those of ten bins before."""
    torch.manual_seed(0)
    bins = binning(2, 48, margin_bins=16)
    hidden, action = torch.randn(3, 16), torch.zeros(3, 2, dtype=torch.int64)
    here, there = torch.tensor([[22, 20]] * 3), torch.tensor([[32, 30]] * 3)
    for increments in (True, False):
        head = ContinuousHead(bins, bins, 16, increments=increments)
        shake(head.coefficients, 0.5)
        head.dynamics.drift.weight.zero_()
        ours, theirs = (head(hidden, place, action).log_softmax(-1) for place in (here, there))
        both = (ours[..., 8:-10].log_softmax(-1), theirs[..., 18:].log_softmax(-1))
        if increments:
            torch.testing.assert_close(*both, atol=1e-3, rtol=0)
        else:
            assert (both[0] - both[1]).abs().max() > 0.1


@torch.no_grad()
def test_linear_dynamics_hold_where_joint_and_target_are_elsewhere() -> None:
    """Of a joint that hardly moves least squares alone would not learn that it goes with its
    target: its place serves as well to explain the noise of the other."""
    bins = binning(2, 768, margin_bins=256)
    generator = torch.Generator().manual_seed(0)

    def steps(count: int, place: float) -> tuple[Tensor, Tensor, Tensor]:
        spread = torch.tensor([1.0, 0.02])
        state = torch.randn(count, 2, generator=generator).clamp(-2, 2) * 0.1 * spread
        target = state + 0.1 * torch.randn(count, 2, generator=generator).clamp(-2, 2) * spread / 2
        noise = 0.02 * torch.randn(count, 2, generator=generator) * spread
        following = state + 0.3 * (target - state) + noise
        values = (value + torch.tensor([0.0, place]) for value in (state, target, following))
        state, action, next_state = (
            torch.from_numpy(bins.encode(value.numpy()).astype(np.int64)) for value in values
        )
        return state, action, next_state

    dynamics = LinearDynamics(bins, bins)
    state, action, next_state = steps(300, 0.0)
    dynamics.fit(state=state, action=action, next_state=next_state)
    state, action, next_state = steps(300, 0.5)
    error = (dynamics(state, action) - dynamics.centers[dynamics.dimension, next_state]).abs()
    assert error.mean() < 0.05


@torch.no_grad()
def test_linear_dynamics_are_found_from_steps() -> None:
    """A spring that follows its target: the fit predicts unseen steps to the width of a bin."""
    bins = binning(2, 256)
    generator = torch.Generator().manual_seed(0)

    def steps(count: int) -> tuple[Tensor, Tensor, Tensor]:
        state = torch.rand(count, 2, generator=generator) * 1.6 - 0.8
        target = torch.rand(count, 2, generator=generator) * 1.6 - 0.8
        following = state + 0.3 * (target - state) + 0.1 * state.flip(1)
        values = (state, target, following)
        encoded = [torch.from_numpy(bins.encode(x.numpy()).astype(np.int64)) for x in values]
        return encoded[0], encoded[1], encoded[2]

    dynamics = LinearDynamics(bins, bins)
    state, action, next_state = steps(2000)
    dynamics.fit(state=state, action=action, next_state=next_state)
    state, action, next_state = steps(200)
    error = (dynamics(state, action) - dynamics.centers[dynamics.dimension, next_state]).abs()
    assert error.max() < 2 * 2 / 256
    width = [[-0.3, 0.1, 0.3, 0.0], [0.1, -0.3, 0.0, 0.3]]
    torch.testing.assert_close(dynamics.drift.weight, torch.tensor(width), atol=0.01, rtol=0)


@torch.no_grad()
def test_linear_dynamics_take_discrete_actions_one_by_one() -> None:
    bins, moves = binning(1, 64), torch.tensor([-4, 0, 9])
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(8, 50, (600, 1), generator=generator)
    action = torch.randint(3, (600, 1), generator=generator)
    dynamics = LinearDynamics(bins, DiscreteTokenizer(num_values=3))
    dynamics.fit(state=state, action=action, next_state=state + moves[action])
    step = dynamics(state[:20], action[:20]) - dynamics.centers[0, state[:20]]
    torch.testing.assert_close(step, moves[action[:20]] * 2 / 64, atol=2e-3, rtol=0)


def test_the_discrete_head_gives_every_dimension_its_own_logits() -> None:
    head = DiscreteHead(2, 5, 16)
    shake(head)
    hidden = torch.randn(3, 16)
    logits = head(hidden, torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 1))
    assert logits.shape == (3, 2, 5)
    torch.testing.assert_close(logits.flatten(1), head.logits(hidden))


# --- codes


@pytest.mark.parametrize("codebook_size", [64, 240, 1000])
def test_digits_are_those_of_the_quantizer(codebook_size: int) -> None:
    """Codes that share a digit share that coordinate of the quantized latent, and only they."""
    quantizer = build_quantizer("fsq", codebook_size, 0, 0.0)
    levels = tuple(FSQ_LEVELS[codebook_size])
    codes = quantizer.codes_of(torch.arange(codebook_size)[None])[0]  # (V, code_dim)
    table = digit_table(codebook_size, levels)
    assert table.shape == (codebook_size, sum(levels))
    for dimension, digits in enumerate(table.split(levels, dim=1)):
        assert torch.equal(digits.sum(1), torch.ones(codebook_size))
        coordinate = codes[:, dimension]
        same = coordinate[:, None] == coordinate[None]
        assert torch.equal(digits @ digits.T == 1, same)


@torch.no_grad()
def test_a_code_is_its_row_plus_its_digits() -> None:
    torch.manual_seed(0)
    embedding = CodeEmbedding(32, (8, 4), 16)
    assert embedding(torch.tensor([[3, 31]])).shape == (1, 2, 16)
    for code in (0, 3, 31):
        first, second = code % 8, code // 8
        expected = embedding.table[code] + embedding.digit_table[first]
        expected = expected + embedding.digit_table[8 + second]
        torch.testing.assert_close(embedding(torch.tensor(code)), expected)
    head = CodeHead(32, (8, 4), 16)
    hidden = torch.randn(5, 16)
    assert torch.equal(head(hidden), torch.zeros(5, 32))
    shake(head, 0.5)
    first, second = 29 % 8, 29 // 8
    weight = head.table[29] + head.digit_table[first] + head.digit_table[8 + second]
    torch.testing.assert_close(head(hidden)[:, 29], hidden @ weight + head.bias[29])


@torch.no_grad()
def test_codes_without_digits_have_a_plain_table() -> None:
    embedding, head = CodeEmbedding(32, (), 16), CodeHead(32, (), 16)
    tokens = torch.randint(32, (2, 5))
    torch.testing.assert_close(embedding(tokens), embedding.table[tokens])
    shake(head)
    hidden = torch.randn(3, 16)
    torch.testing.assert_close(head(hidden), hidden @ head.table.T + head.bias)


# --- hints


@torch.no_grad()
def test_a_hint_depends_on_its_neighbourhood_in_its_own_camera() -> None:
    torch.manual_seed(0)
    hints = FrameHints(CodeEmbedding(32, (8, 4), 16), 2, (3, 4), 16)
    frame = torch.randint(32, (1, 1, 24))
    place, condition = torch.randn(24, 16), torch.randn(1, 1, 16)
    reference = hints(frame, place, condition)[0, 0]
    for slot in range(24):
        other = frame.clone()
        other[0, 0, slot] = (other[0, 0, slot] + 1) % 32
        changed = (hints(other, place, condition)[0, 0] != reference).any(-1)
        camera, (row, column) = slot // 12, divmod(slot % 12, 4)
        for index in range(24):
            there, (y, x) = index // 12, divmod(index % 12, 4)
            near = there == camera and abs(y - row) <= 1 and abs(x - column) <= 1
            assert bool(changed[index]) == near, (slot, index)


def test_grid_positions_tell_rows_and_columns_apart() -> None:
    table = grid_positions(2, (3, 4), 16)
    assert table.shape == (24, 16)
    assert torch.equal(table[:12], table[12:])
    distances = torch.cdist(table[:12], table[:12]) + torch.eye(12)
    assert distances.min() > 0.1
    # Rows use one half of the width and columns the other.
    assert torch.equal(table[0, :8], table[3, :8])
    assert torch.equal(table[0, 8:], table[8, 8:])
    assert distances[0, 1] < distances[0, 3]


# --- reward


@given(value=st.floats(-1e6, 1e6))
def test_symexp_inverts_symlog(value: float) -> None:
    x = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x)
    assert float(symlog(x)) == pytest.approx(math.copysign(math.log1p(abs(value)), value))


def two_hot_loss(logits: Tensor, reward: float, limit: float) -> float:
    """Cross-entropy against the two neighbouring bins, by hand."""
    even = [-limit + 2 * limit * i / (len(logits) - 1) for i in range(len(logits))]
    places = [math.copysign(math.expm1(abs(place)), place) for place in even]
    target = min(max(reward, places[0]), places[-1])
    below = max(i for i, place in enumerate(places[:-1]) if place <= target + 1e-9)
    share = (target - places[below]) / (places[below + 1] - places[below])
    log_probabilities = logits.double().log_softmax(-1)
    return -float((1 - share) * log_probabilities[below] + share * log_probabilities[below + 1])


def reach(limit: float) -> tuple[float, float]:
    """The rewards whose symlog is from ``-limit`` to ``limit``."""
    return -math.expm1(limit), math.expm1(limit)


@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0, 0.5, 6.389056, -1e9, 1e9, math.e - 1])
def test_the_reward_loss_equals_the_hand_computed_one(reward: float) -> None:
    head = RewardHead(4, reach(4.0), num_bins=9)
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0))
    head.logits = Fixed(logits)  # type: ignore[assignment]
    loss = head.loss(torch.zeros(2, 3, 4), torch.full((2, 3), reward))
    assert loss.shape == (2, 3)
    torch.testing.assert_close(loss, torch.full((2, 3), two_hot_loss(logits, reward, 4.0)))


def test_the_expected_reward_is_taken_in_units_of_rewards() -> None:
    head = RewardHead(4, reach(2.0), num_bins=3)  # bins -6.39, 0, 6.39
    head.logits = Fixed(torch.tensor([0.0, 0.25, 0.75]).log())  # type: ignore[assignment]
    assert float(head(torch.zeros(4))) == pytest.approx(0.75 * math.expm1(2.0))
    head.logits = Fixed(torch.tensor([0.75, 0.25, 0.0]).log())  # type: ignore[assignment]
    assert float(head(torch.zeros(4))) == pytest.approx(-0.75 * math.expm1(2.0))


def best_logits(head: RewardHead, rewards: list[float]) -> Tensor:
    """Where the loss is least over equally frequent rewards: the mean of their two-hot codes.

    Cross-entropy is linear in its target, and its gradient is softmax minus target.
    """
    logits = torch.zeros(len(head.bins), requires_grad=True)
    head.logits = Fixed(logits)  # type: ignore[assignment]
    head.loss(torch.zeros(len(rewards), 4), torch.tensor(rewards)).mean().backward()
    assert logits.grad is not None
    target = 1.0 / len(logits) - logits.grad
    return target.clamp(min=1e-12).log()


@pytest.mark.parametrize(
    ("rewards", "reward_range"),
    [
        ([0.0] * 9 + [10.0], (0.0, 10.0)),  # 1.0, not .27
        ([0.0] * 9 + [1.0], (0.0, 1.0)),
        ([0.0, 100.0], (0.0, 100.0)),  # 50, not 9
        ([0.0] * 9 + [10.0], (-3.0, 1234.5)),
        ([-1000.0, -1000.0, -1.0], (-1000.0, -1.0)),
        ([1e-7, 3e-7], (0.0, 3e-7)),
        ([0.0, 1e30], (-1e30, 1e30)),
        ([1000.0, 1000.0009765625], (1000.0, 1000.0009765625)),
        ([0.0] * 9 + [10.0], None),
        ([-0.3, 700.0], None),
    ],
)
def test_the_expected_reward_of_two_values_is_their_mean(
    rewards: list[float], reward_range: tuple[float, float] | None
) -> None:
    head = RewardHead(4, reward_range)
    head.logits = Fixed(best_logits(head, rewards))  # type: ignore[assignment]
    scale = max(rewards) - min(rewards)
    mean = sum(rewards) / len(rewards)
    assert float(head(torch.zeros(4))) == pytest.approx(mean, abs=2e-5 * scale + 1e-7 * abs(mean))
    if reward_range is not None:
        assert torch.equal(head.bins[[0, -1]], torch.tensor(reward_range))
        assert (head.bins.diff() >= 0).all()


@pytest.mark.parametrize("value", [0.0, 2.5, -7.0, 1e-30])
def test_rewards_that_are_all_equal_are_expected_whatever_the_logits(value: float) -> None:
    head = RewardHead(4, (value, value))
    nn.init.normal_(head.logits.weight)
    hidden = torch.randn(3, 4)
    torch.testing.assert_close(head(hidden), torch.full((3,), value))
    loss = head.loss(hidden, torch.tensor([value, value + 1.0, value - 1.0]))  # clamped
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert head.logits.weight.grad is not None and torch.isfinite(head.logits.weight.grad).all()


def test_what_training_leaves_in_bins_of_an_unknown_range_does_not_count() -> None:
    """The last bins stand for half a billion; a range that is known has no such bins."""
    head = RewardHead(4)
    logits = torch.full((255,), -14.0)
    logits[130:] += 1.0  # as uneven as a bias of 2,000 steps
    logits[127] = 0.0
    head.logits = Fixed(logits)  # type: ignore[assignment]
    assert float(head(torch.zeros(4))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("reward", [-50.0, -0.3, 0.0, 1.0, 700.0])
def test_the_least_loss_expects_the_reward(reward: float) -> None:
    """A prediction that minimises the loss says the reward itself."""
    head = RewardHead(4)
    logits = torch.zeros(255, requires_grad=True)
    head.logits = Fixed(logits)  # type: ignore[assignment]
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(torch.zeros(1, 4), torch.tensor([reward])).sum().backward()
        optimizer.step()
    assert float(head(torch.zeros(4)).detach()) == pytest.approx(reward, rel=0.02, abs=0.02)


def test_an_untrained_head_expects_nothing() -> None:
    head = RewardHead(4)
    nn.init.zeros_(head.logits.bias)
    assert float(head(torch.randn(4)).detach()) == pytest.approx(0.0, abs=1e-4)


def test_codes_without_rows_are_known_by_their_digits() -> None:
    levels = (4, 3)
    embedding = CodeEmbedding(12, levels, 8, has_rows=False)
    assert embedding.table is None
    table = embedding.digit_table
    expected = table[torch.arange(12) % 4] + table[4 + torch.arange(12) // 4]
    torch.testing.assert_close(embedding(torch.arange(12)), expected)
    head = CodeHead(12, levels, 8, has_rows=False)
    nn.init.normal_(head.digit_table)
    nn.init.normal_(head.bias)
    hidden = torch.randn(5, 8)
    logits = F.linear(hidden, head.vectors(), head.digits @ head.bias)
    torch.testing.assert_close(head(hidden), logits)
    # The likelihood of a code is the product of those of its digits.
    of_codes = head(hidden).softmax(-1).view(5, 3, 4)
    torch.testing.assert_close(
        of_codes, of_codes.sum(2, keepdim=True) * of_codes.sum(1, keepdim=True)
    )


def test_codes_of_a_table_need_rows() -> None:
    config = WorldModelConfig(
        transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2), code_rows=False
    )
    with pytest.raises(TokenwmError, match=r"code_rows=False, .* no digits .* quantizer fsq"):
        WorldModel(config, small_vocabulary("frame"))
