"""Cloning by hindsight on a line, where the action that leads to a goal is known."""

import math

import numpy as np
import pytest
import torch

from tests.chains import GRID, STEP, walks
from tests.moving_square import SIZE, make_model
from tests.small_models import binning
from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.heads.actions import ActionCode
from tokenwm.heads.recorded import Recorded
from tokenwm.imagination.world import Observation, Policy
from tokenwm.policies.acting import ClonedPolicy, GoalProposal
from tokenwm.policies.chunks import Chunks
from tokenwm.policies.cloning import GoalPolicy, fit_prior, measure_prior
from tokenwm.tokenizer.actions import DiscreteTokenizer

VELOCITIES = (-1.0, -0.5, 0.5, 1.0)
ACTION = binning(1, 16)


@pytest.fixture(scope="module")
def prior() -> GoalPolicy:
    return fit_prior(
        walks(VELOCITIES * 30),
        GRID,
        ACTION,
        chunk=3,
        reach=4,
        num_steps=300,
        num_chunks=4,
        hidden=256,
    )


def test_the_action_that_leads_to_the_goal_is_recovered(prior: GoalPolicy) -> None:
    here = torch.linspace(-0.4, 0.4, 12)[:, None]
    off = []
    for velocity in VELOCITIES:
        for steps in (3, 4):
            chosen = prior(here, here + STEP * velocity * steps, steps).mode()
            assert chosen.shape == (12, 3, 1)
            off.append((chosen - velocity).abs().mean())
    assert torch.stack(off).mean() < 0.3, off  # of no action at all .75
    nearer = prior(here, here + STEP * 2.0, torch.full((12,), 2))  # half the steps: twice as fast
    farther = prior(here, here + STEP * 2.0, torch.full((12,), 4))
    slow = torch.full((12, 3, 1), 0.5)
    assert (farther.log_prob(slow) > nearer.log_prob(slow)).float().mean() > 0.8
    figures = measure_prior(prior, walks(VELOCITIES, seed=7), walks(VELOCITIES * 30))
    assert figures["nats"] < 0.5 * figures["marginal_nats"] < figures["uniform_nats"]
    assert figures["nats"] < figures["nats_without_goal"]
    assert 2 * figures["mode_error"] < figures["mode_error_without_goal"]


def test_without_a_goal_whole_chunks_are_drawn_not_their_mixture(prior: GoalPolicy) -> None:
    drawn = prior(torch.zeros(1, 1)).sample(400, torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 400, 3, 1) and (drawn.abs() <= 1.0).all()
    speed = drawn[0, ..., 0]
    assert speed.mean(1).std() > 0.5  # all velocities occur …
    assert speed.std(1).mean() < 0.25  # … and each goes on as it began
    again = prior(torch.zeros(1, 1)).sample(400, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


@pytest.mark.parametrize("margin_bins", [0, 3])
def test_probabilities_are_those_of_what_is_drawn(margin_bins: int) -> None:
    """Over all bins they sum to one, and frequencies of draws agree."""
    action = binning(1, 16, margin_bins)
    code = ActionCode(action)
    parameters = torch.tensor([[[[[-0.4, -2.0]]], [[[0.5, -1.5]]]]])  # (1, 2, 1, 1, 2)
    chunks = Chunks(code=code, log_weights=torch.tensor([[0.3, 0.7]]).log(), parameters=parameters)
    every = torch.from_numpy(action.centers.T).float()[:, None]  # (16, 1, 1)
    many = Chunks(
        code=code,
        log_weights=chunks.log_weights.expand(16, -1),
        parameters=parameters.expand(16, -1, -1, -1, -1),
    )
    probability = many.log_prob(every).exp()
    assert math.isclose(float(probability.sum()), 1.0, abs_tol=1e-4)
    drawn = chunks.sample(20_000, torch.Generator().manual_seed(1))[0, :, 0, 0]
    low, high = (float(end[0]) for end in action.training_range)
    assert drawn.min() >= low and drawn.max() <= high
    bins = action.encode(drawn[:, None].numpy())[:, 0].astype(int)
    share = torch.from_numpy(np.bincount(bins, minlength=16) / len(bins))
    inner = slice(margin_bins + 1, 15 - margin_bins)
    torch.testing.assert_close(share[inner].float(), probability[inner], atol=0.012, rtol=0)


def test_ids_have_a_logit_each_and_unused_ones_are_never_drawn() -> None:
    code = ActionCode(DiscreteTokenizer(num_values=5, num_dimensions=2, sizes=(3, 5)))
    parameters = torch.zeros(1, 1, 2, 2, 5)
    parameters[..., 0, 4] = 9.0  # not used by the data
    chunks = Chunks(code=code, log_weights=torch.zeros(1, 1), parameters=parameters)
    drawn = chunks.sample(200, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64 and set(drawn[..., 0].flatten().tolist()) == {0, 1, 2}
    assert set(drawn[..., 1].flatten().tolist()) == {0, 1, 2, 3, 4}
    nats = -chunks.log_prob(torch.zeros(1, 2, 2, dtype=torch.int64))
    assert math.isclose(float(nats), 2 * math.log(3) + 2 * math.log(5), rel_tol=1e-5)


def test_what_does_not_fit_a_prior_is_said(prior: GoalPolicy) -> None:
    with pytest.raises(ShapeError, match=r"goal features are \(1, 3\)"):
        prior(torch.zeros(2, 1), torch.zeros(1, 3))
    with pytest.raises(TokenwmError, match="steps=0; use a whole number"):
        prior(torch.zeros(2, 1), torch.zeros(1, 1), 0)
    with pytest.raises(TokenwmError, match="this head is no prior for actions of 3"):
        GoalPolicy(prior.head, binning(3))
    with pytest.raises(ShapeError, match="actions has shape"):
        prior(torch.zeros(2, 1)).log_prob(torch.zeros(2, 1, 1))


def test_a_cloned_policy_sees_what_the_world_sees() -> None:
    """It acts as the prior does on the features of the state that observed the same frames."""
    model = make_model(code_margin=0.2)
    width = model.num_features
    recorded = _random_steps(width, model.num_codes)
    prior = fit_prior(
        recorded, model.code_grid, model.vocabulary.action, chunk=2, reach=3, num_steps=3, hidden=16
    )
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(256, (2, 3, 1, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    states, actions = torch.rand(2, 3, 2, generator=generator), torch.zeros(2, 2, 2)
    goal = frames[0, 2]
    policy = ClonedPolicy(model, prior, goal, steps=2, num_steps=2)
    as_policy: Policy = policy  # type: ignore[type-arg]
    memory = as_policy.begin(2, seed=0)
    for step in range(3):
        observed = Observation(frames=frames[:, step], state=states[:, step])
        chosen, memory = as_policy.act(observed, memory)
        context = model.context(frames[:, : step + 1], actions[:, :step], states[:, : step + 1])
        state = model.start(context)
        left = max(1, 2 - 2 * step)
        wanted = prior(model.features(state), model.goal_features(goal), left).mode()
        torch.testing.assert_close(chosen, wanted)
    proposal = GoalProposal(prior, model.goal_features(goal))
    one = model.start(model.context(frames[:1], actions[:1], states[:1]))
    proposed = proposal(model, one, torch.Generator().manual_seed(0), 5, 1)
    assert proposed.shape == (5, 1, 2)
    mode = prior(model.features(one), model.goal_features(goal)).mode()
    torch.testing.assert_close(proposed[:1], mode[:, :1])
    with pytest.raises(TokenwmError, match="num_steps=3; the chunks have 2 steps"):
        ClonedPolicy(model, prior, num_steps=3)
    with pytest.raises(TokenwmError, match="one has a state and the other none"):
        policy.act(Observation(frames=frames[:, 0]), policy.begin(2, 0))
    with pytest.raises(ShapeError, match=r"observation\.frames has shape"):
        policy.act(observed, policy.begin(3, 0))


def _random_steps(num_features: int, num_codes: int) -> Recorded:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(12, num_features, generator=generator)
    return Recorded(
        features=features,
        goals=features[:, :num_codes],
        frame_tokens=torch.zeros(12, 4, dtype=torch.int64),
        pictures=torch.zeros(12, 3, dtype=torch.uint8),
        actions=torch.rand(12, 2, generator=generator),
        first=torch.zeros(12, dtype=torch.int64),
        last=torch.full((12,), 11),
        recording=torch.zeros(12, dtype=torch.int64),
        is_synthetic=torch.zeros(12, dtype=torch.bool),
    )
