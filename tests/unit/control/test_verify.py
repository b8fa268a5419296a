"""Verdicts and rankings on the toy world, whose futures are known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.toy_world import CELLS, ToyState, ToyWorld
from tokenwm.control.limits import Limits
from tokenwm.control.rank import rank
from tokenwm.control.verify import VerifyConfig, falls_below, verify
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig

WORLD = ToyWorld(slip=0.4)
LIMITS = Limits(rate=10.0, position=((-2.0, 2.0),), speed=(30.0,))
SURE = VerifyConfig(num_futures=400, max_failure_probability=0.35)


def start(position: float = 8.0) -> ToyState:
    return WORLD.start(WORLD.context(torch.tensor([[position]])), seed=3)


def chunk(*actions: float) -> Tensor:
    return torch.tensor(actions)[:, None]


def reward(rollout: Rollout) -> Tensor:
    assert rollout.reward is not None
    return rollout.reward


def is_at_the_wall(rollout: Rollout) -> Tensor:
    assert rollout.state is not None
    return rollout.state[..., 0] < 0.5


@pytest.mark.parametrize(
    ("position", "decision", "probability"),
    [(8.0, "accepted", 0.0), (2.0, "accepted", 0.2), (1.0, "rejected", 0.8)],
    ids=["far from the wall", "one slip away", "there unless it slips"],
)
def test_the_probability_of_failure_is_that_of_the_world(
    position: float, decision: str, probability: float
) -> None:
    verdict = verify(WORLD, start(position), chunk(-1.0), is_at_the_wall, config=SURE)
    assert verdict.decision == decision
    assert verdict.failure_probability == pytest.approx(probability, abs=0.06)
    assert f"of 400 futures fail, at most {0.35:.1%} may" in verdict.reason


def test_a_verdict_is_imagining_and_then_judging() -> None:
    state, actions = start(3.0), chunk(-1.0, -1.0, 1.0)
    verdict = verify(WORLD, state, actions, is_at_the_wall)
    fork = WORLD.fork(state, 16, 3, noise_streams=torch.arange(16))
    _, rollout = WORLD.roll(fork, actions.expand(16, 3, 1))
    fails = is_at_the_wall(rollout).any(1).float().mean()
    assert 0 < verdict.failure_probability == float(fails) < 1  # type: ignore[operator]
    again = verify(WORLD, state, actions, is_at_the_wall)  # the state is not used up
    assert replace(again, seconds=0.0) == replace(verdict, seconds=0.0)


def test_a_failure_behind_the_end_of_the_episode_does_not_count() -> None:
    """The far end of the line ends the episode, so nothing fails at the step after."""

    def late(rollout: Rollout) -> Tensor:
        return torch.tensor([False, True]).expand(rollout.frame_nll.shape)

    calm = ToyWorld(slip=0.0)
    state = calm.start(calm.context(torch.tensor([[CELLS - 2.0]])))
    ended = verify(calm, state, chunk(2.0, 0.0), late)
    goes_on = verify(calm, state, chunk(-2.0, 0.0), late)
    assert (ended.failure_probability, goes_on.failure_probability) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("actions", "limit"),
    [((0.0, 2.5), "position"), ((-2.0, 2.0), "speed"), ((float("nan"), 0.0), "finite")],
    ids=["position", "speed", "nan"],
)
def test_hard_limits_come_first_and_nothing_is_imagined(
    actions: tuple[float, ...], limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WORLD, "roll", None)
    verdict = verify(WORLD, start(), chunk(*actions), None, LIMITS)
    assert verdict.decision == "rejected" and verdict.failure_probability is None
    assert verdict.limit is not None and verdict.limit.limit == limit


def test_speed_is_judged_from_the_last_action() -> None:
    for last, decision in ((-1.5, "rejected"), (0.0, "accepted")):
        verdict = verify(WORLD, start(), chunk(2.0), None, LIMITS, previous=torch.tensor([[last]]))
        assert verdict.decision == decision


def test_nothing_overrides_the_limits_for_ten_thousand_random_chunks() -> None:
    chunks = torch.randn(10_000, 3, 1, generator=torch.Generator().manual_seed(0)) * 1.5
    ranking = rank(WORLD, start(), chunks, lambda rollout: reward(rollout) + 1e9, LIMITS)
    within = LIMITS.allows(chunks)
    assert 1000 < within.sum() < 9000
    assert [verdict.decision == "accepted" for verdict in ranking.verdicts] == within.tolist()
    assert (ranking.scores.isfinite().numpy() == within).all()
    best = ranking.best
    assert best is not None and within[best] and int(ranking.order[0]) == best


def test_unknown_where_doubt_passes_its_limit_or_numbers_are_none() -> None:
    def doubt(rollout: Rollout) -> Tensor:
        return rollout.frame_nll * 0.0 + torch.tensor([0.1, 0.7])

    config = VerifyConfig(max_doubt=0.5)
    verdict = verify(WORLD, start(0.0), chunk(-1, -1), is_at_the_wall, doubt=doubt, config=config)
    assert (
        verdict.decision == "unknown"
        and verdict.reason == "the model's doubt is 0.7, more than 0.5"
    )
    assert verdict.doubt == pytest.approx(0.7)
    sure = VerifyConfig(max_doubt=0.8)
    verdict = verify(WORLD, start(0.0), chunk(-1, -1), is_at_the_wall, doubt=doubt, config=sure)
    assert verdict.decision == "rejected"
    verdict = verify(WORLD, start(), chunk(0.0), lambda rollout: reward(rollout) / 0.0 * 0.0)
    assert verdict.decision == "unknown" and "16 of 16 futures are not finite" in verdict.reason


def test_an_objective_becomes_a_failure() -> None:
    verdict = verify(WORLD, start(), chunk(0.0), falls_below(reward, -4.5), config=SURE)
    assert verdict.failure_probability == pytest.approx(0.2, abs=0.06)


def test_one_batch_ranks_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(1)
    chunks = torch.rand(12, 4, 1, generator=generator) * 4 - 2
    config = VerifyConfig(num_futures=8)
    state = start(2.0)
    together = rank(WORLD, state, chunks, reward, failure=is_at_the_wall, config=config)
    alone = [
        rank(WORLD, state, each[None], reward, failure=is_at_the_wall, config=config)
        for each in chunks
    ]
    assert torch.equal(together.scores, torch.cat([each.scores for each in alone]))
    for verdict, each in zip(together.verdicts, alone, strict=True):
        assert replace(verdict, seconds=0.0) == replace(each.verdicts[0], seconds=0.0)
    scores = together.scores.tolist()
    assert [scores[i] for i in together.order.tolist()] == sorted(scores, reverse=True)
    assert len({verdict.decision for verdict in together.verdicts}) == 2


def test_the_best_is_the_best_that_is_accepted() -> None:
    def near_the_wall(rollout: Rollout) -> Tensor:
        assert rollout.state is not None
        return -rollout.state[..., 0]

    chunks = torch.tensor([[[-2.0]], [[-1.0]], [[0.0]]])
    calm = ToyWorld(slip=0.0)
    state = calm.start(calm.context(torch.tensor([[2.0]])))
    ranking = rank(calm, state, chunks, near_the_wall, failure=is_at_the_wall)
    assert ranking.order.tolist() == [0, 1, 2] and ranking.best == 1
    none = rank(calm, state, chunks[:1], near_the_wall, failure=is_at_the_wall)
    assert none.best is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chunk": torch.zeros(3)}, r"chunk has shape \(3,\)"),
        ({"failure": reward}, r"failure gives values in \[-\d"),
        ({"failure": lambda rollout: torch.zeros(3)}, "what the failure returned has shape"),
        ({"config": VerifyConfig(max_doubt=0.1)}, "nothing estimates the model's doubt"),
    ],
    ids=["shape", "no probability", "rows", "no doubt"],
)
def test_bad_input_gets_one_line(given: dict[str, object], message: str) -> None:
    arguments = {"chunk": chunk(0.0), "failure": is_at_the_wall, **given}
    with pytest.raises(TokenwmError, match=message):
        verify(WORLD, start(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"num_futures": 0}, {"max_failure_probability": 1.5}, {"max_doubt": -1.0}],
    ids=str,
)
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(TokenwmError, match=next(iter(options))):
        VerifyConfig(sampling=SamplingConfig(), **options)  # type: ignore[arg-type]
    with pytest.raises(TokenwmError, match="holds none"):
        rank(WORLD, start(), torch.zeros(0, 2, 1), reward)


def test_a_chunk_that_the_objective_rules_out_is_not_the_best() -> None:
    chunks = torch.stack([chunk(1.0), chunk(-1.0)])
    ranking = rank(WORLD, start(), chunks, lambda rollout: torch.full((2, 1), -torch.inf))
    assert [verdict.decision for verdict in ranking.verdicts] == ["accepted"] * 2
    assert ranking.best is None


def test_limits_are_those_of_the_worlds_chunks() -> None:
    world = ToyWorld(chunk=2)
    state = world.start(world.context(torch.tensor([[8.0]])))
    limits = Limits(rate=20.0, workspace={"0": (0.0, 2.0)})  # a file that says nothing of chunks
    verdict = verify(world, state, torch.tensor([[1.0, -1.0]]), None, limits)
    assert verdict.decision == "rejected"
    assert verdict.reason.startswith("workspace of dimension 0 is -1 at action 1")
    with pytest.raises(TokenwmError, match="for 10 actions per second and this robot takes 20"):
        verify(world, state, torch.tensor([[1.0, -1.0]]), None, replace(limits, rate=10.0))
