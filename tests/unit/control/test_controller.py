"""The controller: an action in time, within the limits, and it says where it came from."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.toy_world import ToyState, ToyWorld
from tokenwm.control.controller import Controller
from tokenwm.control.decision import ControllerConfig, LimitsError
from tokenwm.control.history import History
from tokenwm.control.limits import Limits
from tokenwm.control.objectives import Reward, total
from tokenwm.control.planners.base import NoPlanError, Plan
from tokenwm.control.planners.categorical import CategoricalCEM
from tokenwm.control.planners.cem import CEM
from tokenwm.control.verify import Verdict
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.world import Observation

GOAL = 12.0


def reward(rollout: Rollout) -> Tensor:
    assert rollout.reward is not None
    return rollout.reward


class Steady:
    """The best of a few steady pushes, 2 steps long."""

    def plan(self, world: Any, state: Any, objective: Any, warm: Plan | None = None) -> Plan:
        pushes = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
        actions = pushes[:, None, None].repeat(1, 2, 1)
        fork = world.fork(state, 5, 2, noise_streams=0)
        _, rollout = world.roll(fork, actions, SamplingConfig(temperature=0.0))
        scores = total(objective, rollout)
        best = int(scores.argmax())
        return make_plan(actions[best], float(scores[best]), rollout.rows([best]))


class Fixed:
    """Plans that were thought of before, one after the other."""

    def __init__(self, *plans: Any) -> None:
        self.plans = [make_plan(torch.tensor(each, dtype=torch.float32)[:, None]) for each in plans]

    def plan(self, world: Any, state: Any, objective: Any, warm: Plan | None = None) -> Plan:
        return self.plans.pop(0)


def make_plan(actions: Tensor, score: float = 0.0, rollout: Rollout | None = None) -> Plan:
    return Plan(actions=actions, expected_return=score, rollout=rollout)


def seen(position: float) -> Observation:
    cell = torch.full((1, 1, 1, 1, 3), int(position), dtype=torch.uint8)
    return Observation(frames=cell, state=torch.tensor([[position]]))


WORLD = ToyWorld(slip=0.0, goal=GOAL)


def controller(
    planner: Any, *, every: int = 1, deadline: float | None = None, **options: Any
) -> Any:
    """One on the line."""
    return Controller(
        WORLD,
        planner,
        reward,
        ControllerConfig(every=every, deadline=deadline),
        context_of=lambda observation: WORLD.context(observation.state),
        **options,
    )


def drive(made: Any, steps: int, position: float = 3.0) -> tuple[list[float], list[Any]]:
    """Where it gets to, and its decisions."""
    path, decisions = [], []
    for _ in range(steps):
        action, decision = made.act(seen(position))
        position = min(max(position + float(action[0]), 0.0), 15.5)
        path.append(position)
        decisions.append(decision)
    return path, decisions


def test_it_reaches_the_goal_and_reads_the_history_once(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[ToyState] = []
    begin = WORLD.start

    def start(*arguments: Any, **options: Any) -> ToyState:
        starts.append(begin(*arguments, **options))
        return starts[-1]

    monkeypatch.setattr(WORLD, "start", start)
    made = controller(Steady())
    path, decisions = drive(made, 9)
    assert path[-3:] == [GOAL] * 3 and len(starts) == 1
    assert {decision.came for decision in decisions} == {"plan"}
    assert all(decision.plan.actions.shape == (2, 1) for decision in decisions)
    assert [float(d.plan.rollout.state[0, 0, 0]) for d in decisions] == path  # the world is exact
    made.begin()
    assert drive(made, 9)[0] == path


def test_it_plans_every_few_steps_and_follows_the_plan_between() -> None:
    made = controller(Fixed([1, 2, -1], [0.5, 1.5, 0]), every=2)
    path, decisions = drive(made, 4)
    assert path == [4.0, 6.0, 6.5, 8.0]
    assert [decision.is_planned for decision in decisions] == [True, False, True, False]
    assert [decision.plan is None for decision in decisions] == [False, True, False, True]


class Pages:
    """A world that writes down what it is told, with two actions of the robot in a step."""

    vocabulary = SimpleNamespace(actions_per_step=2, action=SimpleNamespace(num_dimensions=2))

    def start(self, context: Any, *, seed: int = 0) -> list[Any]:
        return [context]

    def observe(self, state: list[Any], actions: Tensor, observed: Observation) -> Any:
        assert observed.state is not None
        return [*state, actions[0].tolist(), float(observed.state)], torch.zeros(1)


def test_every_phase_of_a_chunk_has_a_history_of_its_own() -> None:
    world: Any = Pages()
    history: Any = History(world, lambda observation: float(observation.state))
    for step in range(6):
        taken = [np.array([float(action)]) for action in range(max(0, step - 2), step)]
        history.observe(step, seen(10.0 + step), taken)
        odd = step % 2
        expected: list[Any] = [10.0 + odd]
        for end in range(odd + 2, step + 1, 2):
            expected += [[end - 2.0, end - 1.0], 10.0 + end]
        assert history.state_at(step) == expected
    history.begin("what was observed before", 0)
    history.observe(0, seen(3.0), [])
    assert history.state_at(0) == ["what was observed before"]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("discrete", [False, True], ids=["real", "ids"])
def test_planners_drive_at_any_step_of_a_chunk(every: int, discrete: bool) -> None:
    world = ToyWorld(slip=0.0, goal=GOAL, chunk=2, discrete=discrete)
    kind = CategoricalCEM if discrete else CEM
    made = Controller(
        world,
        kind(horizon=2, num_candidates=64, num_elites=6),
        Reward(),
        ControllerConfig(every=every),
        context_of=lambda observation: world.context(observation.state),
    )
    position, surprises = 3.0, []
    for _ in range(12):
        action, decision = made.act(seen(position))
        assert action.dtype == (np.int64 if discrete else np.float32)
        position += float(action[0]) - (2.0 if discrete else 0.0)
        if decision.surprise is not None:
            surprises.append(decision.surprise)
    # Within a chunk it may be anywhere: only where steps of the world end is rewarded.
    assert position == pytest.approx(GOAL, abs=0.7 if every == 2 else 2.5)
    # Each phase was told what was done between its steps: nothing else leads where it was.
    assert len(surprises) >= 12 // every - 2 and max(surprises) == 0.0


class Clock:
    """Time that passes when a planner takes its time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_late_plan_is_replaced_and_taken_up_from_the_next_step_on() -> None:
    clock = Clock()
    durations = [0.01, 0.01, 5.0, 5.0, 0.01]

    class Slow(Fixed):
        def plan(self, *arguments: Any, **options: Any) -> Plan:
            clock.now += durations.pop(0)
            return super().plan(*arguments, **options)

    planner = Slow([1, 0.5], [0.25, 2.0], [9, -1.0], [8, 7], [0.125])
    made = controller(planner, deadline=0.1, safe_action=np.zeros(1), clock=clock)
    path, decisions = drive(made, 5)
    made.close()
    steps = np.diff([3.0, *path]).tolist()
    # The third is what is left of the second plan, the fourth of the third, which came meanwhile.
    assert steps == [1.0, 0.25, 2.0, -1.0, 0.125]
    late = "rest of the last plan"
    assert [decision.came for decision in decisions] == ["plan", "plan", late, late, "plan"]
    assert [decision.missed_deadline for decision in decisions] == [False, False, True, True, False]
    assert decisions[2].reason == "the plan took longer than 0.1 s" and decisions[2].plan is None
    assert decisions[0].seconds == pytest.approx(0.01)


def test_the_deadline_holds_while_a_planner_thinks_on() -> None:
    go_on = threading.Event()

    class Stuck(Fixed):
        def plan(self, *arguments: Any, **options: Any) -> Plan:
            assert go_on.wait(20)
            return super().plan(*arguments, **options)

    made = controller(Stuck([9, 9, 9, 1.5], [0.5]), deadline=0.02, safe_action=lambda _: np.ones(1))
    began = time.perf_counter()
    path, decisions = drive(made, 3)
    assert time.perf_counter() - began < 10.0  # and not the 20 s that it would wait
    assert path == [4.0, 5.0, 6.0]
    assert all(d.came == "safe action" and d.missed_deadline for d in decisions)
    assert "not there yet" in decisions[1].reason
    due = made._due
    go_on.set()
    due.result(20)
    made.config = ControllerConfig(deadline=20.0)  # this time there is time
    (action, decision), _ = made.act(seen(6.0)), made.close()
    assert (float(action[0]), decision.came) == (0.5, "plan")


def test_without_anything_to_fall_back_on_it_waits_and_says_so() -> None:
    clock = Clock()

    class Slow(Fixed):
        def plan(self, *arguments: Any, **options: Any) -> Plan:
            clock.now += 1.0
            return super().plan(*arguments, **options)

    made = controller(Slow([2.0]), deadline=0.1, clock=clock)
    path, (decision,) = drive(made, 1)
    made.close()
    assert path == [5.0] and decision.came == "plan" and decision.missed_deadline


def test_no_action_that_leaves_it_is_beyond_a_limit() -> None:
    generator = np.random.default_rng(0)
    plans = generator.uniform(-2.0, 2.0, (150, 3)).tolist()
    limits = Limits(rate=10.0, position=((-1.5, 1.5),), speed=(20.0,))
    made = controller(Fixed(*plans), every=2, limits=limits, safe_action=lambda seen: hold())
    taken: list[float] = [0.0]

    def hold() -> Any:
        return np.array([taken[-1]])  # no change: within any limit of speed

    came = []
    for _ in range(300):
        action, decision = made.act(seen(8.0))
        came.append(decision.came)
        assert abs(action[0]) <= 1.5 and (len(came) == 1 or abs(action[0] - taken[-1]) <= 2.0)
        taken.append(float(action[0]))
    assert {"plan", "safe action"} <= set(came)
    assert not made.planner.plans


@pytest.mark.parametrize(
    ("safe", "message"),
    [(None, "no safe action is given"), (np.full(1, 1.0), "the safe action breaks a limit: speed")],
    ids=["none", "unsafe"],
)
def test_where_nothing_is_within_the_limits_it_stops(safe: Any, message: str) -> None:
    limits = Limits(rate=10.0, position=((-1.0, 1.0),), speed=(15.0,))
    made = controller(Fixed([-1.0], [2.0]), limits=limits, safe_action=safe)
    made.act(seen(3.0))
    with pytest.raises(LimitsError, match=f"step 1: .*position of dimension 0.*{message}"):
        made.act(seen(2.0))


def test_a_safe_action_that_never_is_one_is_refused_at_once() -> None:
    limits = Limits(rate=10.0, position=((-1.0, 1.0),))
    with pytest.raises(LimitsError, match="the safe action breaks a limit: position"):
        controller(Fixed(), limits=limits, safe_action=np.full(1, 3.0))
    with pytest.raises(TokenwmError, match="the safe action has shape"):
        controller(Fixed(), safe_action=np.zeros(2))


def test_a_plan_that_is_not_accepted_is_not_taken() -> None:
    def verifier(world: Any, state: Any, chunk: Tensor) -> Verdict:
        is_bold = float(chunk[0]) > 1.0
        return Verdict(decision="unknown" if is_bold else "accepted", reason="too bold")

    made = controller(Fixed([1.0, 0.5], [2.0]), verifier=verifier)
    path, decisions = drive(made, 2)
    assert path == [4.0, 4.5] and decisions[1].came == "rest of the last plan"
    assert decisions[1].reason == "the plan is unknown: too bold"
    assert decisions[1].verdict.decision == "unknown"


@pytest.mark.parametrize("deadline", [None, 5.0], ids=["at once", "in the thread"])
def test_errors_of_the_planner_are_its_own(deadline: float | None) -> None:
    made = controller(Fixed([[1.0, 2.0]]), deadline=deadline)
    with pytest.raises(TokenwmError, match="the plan has shape"):
        made.act(seen(3.0))
    made.close()
    made = controller(Fixed([1.0]), deadline=deadline)
    with pytest.raises(TokenwmError, match="the observation has 2 rows"):
        made.act(Observation(frames=torch.zeros(2, 1, 1, 1, 3)))
    made._history._context_of = lambda observation: 1 / 0
    with pytest.raises(ZeroDivisionError):  # and not that there is no state to plan from
        made.act(seen(3.0))
    made.close()


@pytest.mark.parametrize("options", [{"every": 0}, {"deadline": 0.0}], ids=str)
def test_impossible_settings_are_refused(options: Any) -> None:
    with pytest.raises(TokenwmError, match=next(iter(options))):
        ControllerConfig(**options)


class NeverFinds:
    """A planner that finds nothing, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def plan(self, world: Any, state: Any, objective: Any, warm: Plan | None = None) -> Plan:
        self.times -= 1
        if self.times >= 0:
            raise NoPlanError("none can be chosen")
        return make_plan(torch.tensor([[0.5]]))


@pytest.mark.parametrize("deadline", [None, 5.0], ids=["at once", "in the thread"])
def test_where_no_plan_is_found_the_safe_action_is_taken(deadline: float | None) -> None:
    made = controller(NeverFinds(2), deadline=deadline, safe_action=np.ones(1))
    path, decisions = drive(made, 3)
    made.close()
    assert path == [4.0, 5.0, 5.5]
    assert [decision.came for decision in decisions] == ["safe action", "safe action", "plan"]
    assert decisions[0].reason.startswith("none can be chosen")


def test_after_an_error_a_new_episode_has_to_begin() -> None:
    made = controller(
        Fixed([-1.0], [2.0], [0.5]), limits=Limits(rate=10.0, position=((-1.0, 1.0),))
    )
    made.act(seen(3.0))
    with pytest.raises(LimitsError):
        made.act(seen(2.0))
    with pytest.raises(TokenwmError, match="the last act.. ended in an error.*begin.. a new"):
        made.act(seen(2.0))
    made.begin()
    assert float(made.act(seen(2.0))[0][0]) == 0.5


def test_limits_are_for_one_rate_and_follow_what_was_commanded_before() -> None:
    with pytest.raises(TokenwmError, match="the limits are for 5 actions per second.* takes 10"):
        controller(Fixed(), limits=Limits(rate=5.0))
    made = controller(Fixed([2.0], [2.0]), limits=Limits(rate=10.0, speed=(15.0,)))
    assert float(made.act(seen(3.0))[0][0]) == 2.0  # nobody knows what it did before
    made.begin(taken=[np.zeros(1)])
    with pytest.raises(LimitsError, match="speed of dimension 0 is 20"):
        made.act(seen(3.0))


def test_a_refused_plan_is_where_the_next_search_begins() -> None:
    warm: list[Plan | None] = []

    class Noted(Fixed):
        def plan(self, world: Any, state: Any, objective: Any, before: Plan | None = None) -> Plan:
            warm.append(before)
            return super().plan(world, state, objective)

    limits = Limits(rate=10.0, position=((-1.0, 1.0),))
    made = controller(Noted([3.0, 0.5], [1.0]), limits=limits, safe_action=np.zeros(1))
    drive(made, 2)
    assert warm[0] is None and warm[1] is not None
    assert warm[1].actions[:, 0].tolist() == [0.5, 0.5]  # so that it draws anew, too
