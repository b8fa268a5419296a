"""Ranking and judging chunks over the wire are ranking and judging them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.moving_square import SIZE, make_model
from tests.unit.serving.serving_helpers import question, serving
from tokenwm.control.goals import GoalImage
from tokenwm.control.limits import Limits
from tokenwm.control.objectives import Objective, Reward
from tokenwm.control.planners.icem import ICEM
from tokenwm.control.rank import rank
from tokenwm.control.verify import VerifyConfig, falls_below, verify
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving.client import ServerError, WorldModelClient

LIMITS = Limits(rate=10.0, position=((-2.9, 2.9), (-3.0, 3.0)), speed=(55.0, None))


@pytest.fixture(scope="module")
def model() -> TokenWorldModel:
    """For comparisons; the server has one of its own."""
    return make_model()


@pytest.fixture(scope="module")
def client() -> Iterator[WorldModelClient]:
    with serving() as running, WorldModelClient(port=running.address[1]) as one:
        yield one


def asked_of(num_chunks: int = 6) -> dict[str, Any]:
    asked = question(3, num_chunks)
    asked["chunks"] = asked.pop("actions")
    return asked


def state_of(model: TokenWorldModel, asked: dict[str, Any], seed: int) -> Any:
    context = model.context(asked["frames"], asked["past_actions"], asked["states"])
    return model.start(context, seed=seed)


@pytest.mark.parametrize("by", ["reward", "goal"])
def test_a_ranking(client: WorldModelClient, model: TokenWorldModel, by: str) -> None:
    asked = asked_of()
    picture = np.random.default_rng(0).integers(0, 255, (1, SIZE, SIZE, 3), dtype=np.uint8)
    goal = {"goal": picture} if by == "goal" else {}
    objective: Objective = GoalImage(model, picture) if goal else Reward()
    options = {"least": -0.02 if goal else 0.2, "num_futures": 5, "temperature": 1.0, "seed": 4}
    answer = client.rank(**asked, **goal, **options, limits=LIMITS.to_dict())
    expected = rank(
        model,
        state_of(model, asked, 4),
        asked["chunks"],
        objective,
        LIMITS,
        failure=falls_below(objective, options["least"]),
        previous=asked["past_actions"][0],
        config=VerifyConfig(num_futures=5),
    )
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-5)
    assert answer["order"].tolist() == expected.order.tolist()
    assert answer["decision"] == [verdict.decision for verdict in expected.verdicts]
    assert answer["reasons"] == [verdict.reason for verdict in expected.verdicts]
    broken = [verdict.limit is not None for verdict in expected.verdicts]
    assert any(broken) and not all(broken)
    assert np.isnan(answer["failure_probability"]).tolist() == broken


def test_a_verdict(client: WorldModelClient, model: TokenWorldModel) -> None:
    asked = asked_of(1)
    chunk = asked.pop("chunks")[0]
    answer = client.verify(**asked, chunk=chunk, least=0.45, num_futures=12, seed=2)
    expected = verify(
        model,
        state_of(model, asked, 2),
        chunk,
        falls_below(Reward(), 0.45),
        config=VerifyConfig(num_futures=12, sampling=SamplingConfig()),
    )
    assert answer["failure_probability"] == pytest.approx(expected.failure_probability)
    assert (answer["decision"], answer["reason"]) == (expected.decision, expected.reason)
    fast = client.verify(**asked, chunk=np.float32([[3, 0], [-3, 0]]), limits=LIMITS.to_dict())
    assert fast["decision"] == "rejected" and fast["failure_probability"] is None
    assert fast["reason"].startswith("position of dimension 0 is 3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": {"rate": 10, "sped": [1]}}, "did you mean 'limits.speed'"),
        ({"limits": [1]}, "limits=.1.; an object"),
        ({"num_futures": 40}, "240 rows asked; at most 64 are imagined"),
        ({"max_failure_probability": 2}, "max_failure_probability=2; a number in"),
        ({"horizon": 3}, "unknown: .'horizon'."),
        ({"goal": np.zeros((1, 4, 4, 3), np.uint8)}, "goal has shape"),
        ({"limits": {"rate": 10, "speed": [1]}}, r"the limits are for 1 action\(s\) of 1 dim"),
    ],
    ids=["key", "limits", "futures", "probability", "option", "goal", "dimensions"],
)
def test_what_is_wrong_is_told(
    client: WorldModelClient, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ServerError, match=message) as refusal:
        client.rank(**asked_of(), **options)
    assert refusal.value.status == 400


@pytest.mark.parametrize("by", ["reward", "goal"])
def test_a_plan(client: WorldModelClient, model: TokenWorldModel, by: str) -> None:
    asked = asked_of(1)
    del asked["chunks"]
    picture = np.random.default_rng(0).integers(0, 255, (1, SIZE, SIZE, 3), dtype=np.uint8)
    goal = {"goal": picture} if by == "goal" else {}
    settings = {"horizon": 2, "num_candidates": 16, "num_rounds": 1, "seed": 3}
    answer = client.plan(**asked, **goal, **settings)
    planner = ICEM(**settings, num_elites=2)
    objective: Objective = GoalImage(model, picture) if goal else Reward()
    expected = planner.plan(model, state_of(model, asked, 3), objective)
    np.testing.assert_allclose(answer["actions"], expected.actions, atol=1e-5)
    assert answer["expected_return"] == pytest.approx(expected.expected_return, abs=1e-4)
    assert (answer["decision"], answer["reason"]) == ("accepted", "")
    tight = {"rate": 10.0, "position": [[5, 6], [5, 6]]}
    answer = client.plan(**asked, **goal, **settings, limits=tight)
    assert answer["decision"] == "rejected" and answer["reason"].startswith("position of")
    for wrong, message in (
        ({"seconds": 2.0}, "seconds=2.0; a number in"),
        ({"num_candidates": 65}, "65 rows asked; at most 64"),
        ({"num_candidates": 64, "horizon": 20, "num_rounds": 60}, "76800 rows times steps"),
    ):
        with pytest.raises(ServerError, match=message):
            client.plan(**asked, **goal, **wrong)


def test_without_rewards_a_goal_is_needed() -> None:
    with (
        serving(model=make_model(has_reward=False)) as one,
        WorldModelClient(port=one.address[1]) as client,
    ):
        with pytest.raises(ServerError, match="send the array goal"):
            client.rank(**asked_of())
        asked = asked_of(1)
        chunk = asked.pop("chunks")[0]
        answer = client.verify(**asked, chunk=chunk)
        assert answer["decision"] == "accepted"
