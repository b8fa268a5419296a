"""Planners on a toy world whose best plans are known, and on a token model."""

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenwm
import tokenwm.control
from tests.moving_square import make_episode, make_model, save_model, write_squares
from tests.small_models import small_vocabulary
from tests.toy_world import ToyState, ToyWorld
from tokenwm.control.objectives import Reward, Scores, total
from tokenwm.control.planners.base import NoPlanError, Plan, Planner, roll_candidates
from tokenwm.control.planners.beam import BeamSearch
from tokenwm.control.planners.categorical import CategoricalCEM, fit_probabilities
from tokenwm.control.planners.cem import CEM, Gaussian, fit_gaussian
from tokenwm.control.planners.graph import GraphSearch
from tokenwm.control.planners.icem import ICEM
from tokenwm.control.planners.mppi import MPPI, path_weights, spread_of
from tokenwm.control.planners.random_shooting import RandomShooting
from tokenwm.control.planners.suited import suited_cem
from tokenwm.control.proposals import ActionSpace, Given
from tokenwm.errors import TokenwmError
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.world import Observation

REAL: dict[str, Callable[..., Any]] = {
    "random": RandomShooting,
    "CEM": CEM,
    "iCEM": ICEM,
    "MPPI": MPPI,
    "mean of CEM": lambda **settings: CEM(chooses="mean", **settings),
}
IDS: dict[str, Callable[..., Any]] = {
    "random": RandomShooting,
    "categorical": CategoricalCEM,
}
EVERY = [*((make, False) for make in REAL.values()), *((make, True) for make in IDS.values())]
NAMES = [*REAL, *(f"{name} of ids" for name in IDS)]
every_planner = pytest.mark.parametrize(("make", "discrete"), EVERY, ids=NAMES)


@dataclass
class Watched(ToyWorld):
    """A toy world that notes what is tried, takes its time, and breaks where it is told to."""

    seconds: float = 0.0
    breaks: Callable[[Tensor], Tensor] | None = None
    now: float = 0.0
    tried: list[Tensor] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(**self.settings)

    def roll(
        self, state: ToyState, actions: Tensor, sampling: SamplingConfig | None = None
    ) -> tuple[ToyState, Rollout]:
        self.now += self.seconds
        self.tried.append(actions)
        state, rollout = super().roll(state, actions, sampling)
        if self.breaks is not None and rollout.reward is not None:
            broken = self.breaks(actions)
            reward = rollout.reward.masked_fill(broken[:, None], torch.nan)
            rollout = replace(rollout, reward=reward)
        return state, rollout


def at(world: ToyWorld, position: float) -> ToyState:
    return world.start(world.context(torch.tensor([[position]])))


BEST = -2.0
"""From 8 to the goal at 12, at most 2 a move: 10, 12, 12, 12. With two moves a step, from 6."""


@pytest.mark.parametrize("chunk", [1, 2])
@every_planner
def test_the_known_best_plan_is_found(make: Any, discrete: bool, chunk: int) -> None:
    world = ToyWorld(slip=0.2, chunk=chunk, discrete=discrete)
    planner: Planner = make(horizon=4, num_candidates=400, num_rounds=4, seed=3)
    state = at(world, 8.0 if chunk == 1 else 6.0)
    plan = planner.plan(world, state, Reward())
    slack = {RandomShooting: 2.5, CategoricalCEM: 0.0}.get(make, 0.4)
    assert BEST - slack <= plan.expected_return <= BEST
    assert plan.actions.shape == (4, chunk) and plan.num_rollouts >= 400
    assert plan.actions.dtype == (torch.int64 if discrete else torch.float32)
    # What was expected is what comes of it, and the state can still be gone on from.
    _, happened = world.roll(state, plan.actions[None], SamplingConfig(temperature=0.0))
    assert float(happened.discounted_return(1.0)) == pytest.approx(plan.expected_return, abs=1e-4)
    assert plan.rollout is not None and torch.equal(plan.rollout.reward, happened.reward)  # type: ignore[arg-type]
    assert (plan.spread, plan.doubt, plan.number) == (None, None, 0) and plan.seconds > 0.0


@pytest.mark.parametrize("width", [5, 25])
def test_beam_search_finds_the_best_of_all_sequences(width: int) -> None:
    world = ToyWorld(discrete=True, goal=7.0)
    plan = BeamSearch(horizon=4, width=width).plan(world, at(world, 12.0), Reward())
    assert plan.actions[:, 0].tolist() == [0, 0, 1, 2]  # -2, -2, -1, 0
    assert plan.expected_return == -3.0 - 1.0
    assert plan.num_rollouts == 5 + 3 * 5 * width - (0 if width == 5 else 5 * 20)
    jumps = torch.tensor([[-1.5], [0.0], [2.0]])
    real = ToyWorld(goal=7.0)
    plan = BeamSearch(horizon=3, choices=jumps).plan(real, at(real, 12.0), Reward())
    assert plan.actions[:, 0].tolist() == [-1.5, -1.5, -1.5]
    with pytest.raises(TokenwmError, match="give BeamSearch"):
        BeamSearch().plan(real, at(real, 12.0), Reward())


def test_a_beam_that_is_narrow_is_led_astray_and_a_wide_one_is_not() -> None:
    """Only who first walks away from the goal gets the prize: its width matters."""
    world = ToyWorld(discrete=True, goal=12.0)

    def prize(rollout: Rollout) -> Tensor:
        assert rollout.state is not None and rollout.reward is not None
        return rollout.reward + 100.0 * (rollout.state[..., 0] <= 4.5)

    for width, gets_it in ((1, False), (125, True)):
        plan = BeamSearch(horizon=3, width=width).plan(world, at(world, 10.0), prize)
        assert (plan.expected_return > 50.0) == gets_it


def prize_at(cell: int) -> Scores:
    """1 at a cell and 0 elsewhere: nothing says whether it comes nearer."""
    return Scores(lambda rollout: (rollout.frame_tokens[..., 0] == cell).float(), discount=0.9)


def test_graph_search_finds_a_single_prize_far_away() -> None:
    """Eight steps off, where beams with as many rollouts see no slope to follow."""
    world = Watched(settings={"discrete": True})
    plan = GraphSearch(horizon=12).plan(world, at(world, 15.0 - 1.0), prize_at(0))
    # Come to at the seventh step, where it stays.
    assert plan.expected_return == pytest.approx(sum(0.9**step for step in range(6, 12)))
    assert plan.actions[:7, 0].tolist() == [0] * 7 and plan.actions.shape == (12, 1)
    tried = sum(len(actions) for actions in world.tried)
    # Every cell once, where it begins perhaps twice; and the best of each length to the end.
    assert tried <= 5 * (16 + 1) + 12
    assert len(GraphSearch(horizon=12, width=1).plan(world, at(world, 8.0), prize_at(9)).actions)


def test_graph_search_does_not_go_on_behind_the_end_and_takes_the_sooner_one() -> None:
    """The line ends at 15.5: the prize is there at once, and by any number of detours."""
    world = Watched(settings={"discrete": True})
    plan = GraphSearch(horizon=8).plan(world, at(world, 14.6), prize_at(15))
    assert plan.actions[0, 0] in (3, 4)
    assert plan.expected_return == pytest.approx(1.0)
    assert all(len(actions) <= 5 * 4 for actions in world.tried)  # never from 15 on


def test_path_weights_are_those_of_the_paper() -> None:
    # exp(-(S - min S) / lambda) / eta, with costs S = -score: 1, 1/2, 1/8 at lambda = 1 / ln 2.
    scores = torch.tensor([-3.0, -4.0, -6.0, -math.inf])
    weights = path_weights(scores, 1.0 / math.log(2.0))
    expected = torch.tensor([8.0, 4.0, 1.0, 0.0]) / 13.0
    torch.testing.assert_close(weights, expected)
    assert path_weights(torch.full((4,), -math.inf), 1.0).tolist() == [0.25] * 4
    assert float(spread_of(torch.tensor([1.0, 3.0, -math.inf]))) == pytest.approx(1.0)


def test_gaussian_is_fitted_to_the_elites() -> None:
    before = Gaussian(torch.zeros(1, 2), torch.ones(1, 2))
    elites = torch.tensor([[[1.0, -2.0]], [[3.0, -2.0]], [[99.0, 99.0]]])
    mean, std = fit_gaussian(elites, torch.tensor([5.0, 4.0, -math.inf]), before)
    assert mean.tolist() == [[2.0, -2.0]] and std.tolist() == [[1.0, 0.0]]
    for got, kept in zip(
        fit_gaussian(elites, torch.full((3,), -math.inf), before), before, strict=True
    ):
        assert torch.equal(got, kept)


def test_cem_smooths_and_keeps_a_least_deviation() -> None:
    world = ToyWorld()
    planner = CEM(horizon=1, num_candidates=4, num_elites=2, smoothing=0.25, least_std=0.5)
    search: Any = type("Search", (), {"space": ActionSpace.of(world.vocabulary)})
    before = Gaussian(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    candidates = torch.tensor([0.0, 1.0, 2.0, -1.0]).view(4, 1, 1)
    mean, std = planner.refit(search, before, candidates, torch.tensor([1.0, 9.0, 8.0, 0.0]))
    assert float(mean) == pytest.approx(0.25 * 1.0 + 0.75 * 1.5)
    assert float(std) == pytest.approx(0.25 * 2.0 + 0.75 * 0.5)
    _, std = planner.refit(
        search, before._replace(std=torch.zeros(1, 1)), candidates[:1], torch.tensor([1.0])
    )
    assert float(std) == pytest.approx(0.5 * 4.0 / 12.0**0.5)


def test_probabilities_are_frequencies_in_the_elites() -> None:
    elites = torch.tensor([[[0], [2]], [[0], [1]], [[1], [1]]])
    before = torch.full((2, 1, 3), 1.0 / 3.0)
    found = fit_probabilities(elites, torch.tensor([1.0, 1.0, -math.inf]), before)
    assert found[:, 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    assert torch.equal(fit_probabilities(elites, torch.full((3,), -math.inf), before), before)


@every_planner
def test_a_plan_depends_on_its_seed_and_on_nothing_else(make: Any, discrete: bool) -> None:
    world = ToyWorld(discrete=discrete)
    state = at(world, 3.0)

    def plan(warm: Plan | None = None, **settings: Any) -> Plan:
        made = make(**{"num_candidates": 20, "num_elites": 4, "seed": 1} | settings)
        found: Plan = made.plan(world, state, Reward(), warm)
        return found

    first = plan()
    for again in (plan(), plan(max_rows=7)):  # in parts
        assert torch.equal(again.actions, first.actions)
        assert again.expected_return == pytest.approx(first.expected_return)
    if not discrete:
        assert not torch.equal(plan(seed=2).actions, first.actions)
    # The next plan begins at the last one and draws anew, as often as it is asked the same.
    following = plan(first)
    assert following.number == 1 and torch.equal(plan(first).actions, following.actions)
    if make in (RandomShooting, CEM, ICEM, CategoricalCEM):  # the last plan is tried again
        assert following.expected_return >= first.expected_return - 1e-4


def test_a_plan_moves_on() -> None:
    actions, elites = torch.arange(8.0).view(4, 2), torch.arange(16.0).view(2, 4, 2)
    plan = Plan(actions=actions, expected_return=0.0, elites=elites)
    assert plan.shifted(3).actions[:, 0].tolist() == [6.0] * 4
    assert torch.equal(plan.shifted().actions, actions[[1, 2, 3, 3]])
    moved = plan.shifted(2)
    assert moved.elites is not None and torch.equal(moved.elites, elites[:, [2, 3, 3, 3]])
    assert torch.equal(plan.shifted(0).actions, actions)
    assert plan.shifted(9).actions[:, 0].tolist() == [6.0] * 4
    with pytest.raises(TokenwmError, match="num_taken=-1"):
        plan.shifted(-1)


@every_planner
def test_candidates_never_leave_the_bounds(make: Any, discrete: bool) -> None:
    """10,000 of them, wide ones, towards a goal outside; warm start and prior far outside too."""
    world = Watched(settings={"discrete": discrete, "goal": 99.0})
    wide = {} if discrete or make is RandomShooting else {"initial_std": 9.0}
    far = torch.full((300, 3, 1), 99)
    planner = make(
        horizon=3, num_candidates=3600, num_rounds=4, prior=Given(far), prior_share=0.1, **wide
    )
    warm = Plan(actions=far[0], expected_return=0.0, elites=-far)
    plan = planner.plan(world, at(world, 8.0), Reward(), warm)
    tried = torch.cat(world.tried)
    low, high = (0, 4) if discrete else (-2.0, 2.0)
    assert len(tried) >= 10_000 and tried.min() >= low and tried.max() == high
    assert plan.actions.min() >= low and plan.actions.max() <= high


@every_planner
def test_what_is_not_finite_loses(
    make: Any, discrete: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where it would be best: the world breaks wherever the first move is up."""
    middle = 2 if discrete else 0.0
    world = Watched(settings={"discrete": discrete})
    world.breaks = lambda actions: actions[:, 0, 0] > middle
    bad = Given(torch.full((5, 5, 1), math.nan)) if not discrete else None
    planner = make(num_candidates=200, prior=bad, num_elites=20)
    plan = planner.plan(world, at(world, 8.0), Reward())
    assert plan.actions[0, 0] <= middle and math.isfinite(plan.expected_return)
    assert "candidates have no finite score" in caplog.text
    world.breaks = lambda actions: torch.ones(len(actions), dtype=torch.bool)
    with pytest.raises(TokenwmError, match="none can be chosen"):
        planner.plan(world, at(world, 8.0), Reward())


@pytest.mark.parametrize(
    ("seconds", "of_a_roll", "num_rounds"),
    [(None, 9.0, 6), (0.08, 0.5, 1), (0.08, 0.03, 2), (0.08, 0.01, 6), (0.045, 0.01, 4)],
)
def test_no_round_begins_that_would_end_too_late(
    seconds: float | None, of_a_roll: float, num_rounds: int
) -> None:
    world = Watched(seconds=of_a_roll)
    clock = {"seconds": seconds, "clock": lambda: world.now}
    planner = CEM(num_rounds=6, num_candidates=32, **clock)  # type: ignore[arg-type]
    plan = planner.plan(world, at(world, 3.0), Reward())
    assert (plan.num_rounds, len(world.tried)) == (num_rounds, num_rounds)
    assert plan.seconds == pytest.approx(num_rounds * of_a_roll)
    ids = Watched(seconds=of_a_roll, settings={"discrete": True})
    clock = {"seconds": seconds, "clock": lambda: ids.now}
    plan = BeamSearch(horizon=6, **clock).plan(ids, at(ids, 0.0), Reward())  # type: ignore[arg-type]
    assert plan.actions.shape == (num_rounds, 1)  # as far as it could look
    assert (plan.actions == 4).all()


def test_time_is_kept_for_what_comes_in_the_end() -> None:
    """Of 0.1 s, a round takes 0.03 and trying the mean again another 0.03."""
    world = Watched(seconds=0.03)
    planner = MPPI(num_candidates=1, num_elites=1, seconds=0.1, clock=lambda: world.now)
    plan = planner.plan(world, at(world, 3.0), Reward())
    assert plan.num_rounds == 2 and plan.seconds == pytest.approx(0.09)


def test_a_prior_fills_its_share() -> None:
    world = Watched()
    best = torch.tensor([[[2.0], [2.0], [0.0], [0.0]]])
    asked: list[tuple[int, int]] = []

    def prior(w: Any, state: Any, generator: Any, num: int, horizon: int) -> Tensor:
        asked.append((num, horizon))
        return best.repeat(9, 1, 1)

    planner = RandomShooting(horizon=4, num_candidates=10, prior=prior, prior_share=0.3)
    plan = planner.plan(world, at(world, 8.0), Reward())
    assert plan.expected_return == BEST and torch.equal(plan.actions, best[0])
    assert asked == [(3, 4)]
    assert (world.tried[0] == best).flatten(1).all(1).sum() == 3 and len(world.tried[0]) == 10


def test_the_cem_suits_the_actions() -> None:
    assert suited_cem(small_vocabulary()) is ICEM
    assert suited_cem(small_vocabulary("discrete")) is CategoricalCEM


def test_icem_keeps_elites_and_shrinks_its_rounds() -> None:
    world = Watched()
    planner = ICEM(num_candidates=40, num_elites=5, kept=0.4, decay=2.0, num_rounds=4)
    plan = planner.plan(world, at(world, 3.0), Reward())
    sizes = [len(tried) for tried in world.tried]
    assert sizes == [40, 20, 10, 10] and plan.num_rollouts == 80

    def scores(tried: Tensor) -> Tensor:
        rollout = roll_candidates(world, at(world, 3.0), tried)
        return rollout.discounted_return(1.0)

    first, second = world.tried[:2]
    assert torch.equal(second[:2], first[scores(first).topk(2).indices])
    world.tried.clear()
    moved = plan.shifted()
    planner.plan(world, at(world, 5.0), Reward(), moved)
    assert moved.elites is not None
    assert torch.equal(world.tried[0][0], moved.actions)
    assert torch.equal(world.tried[0][1:3], moved.elites[:2])


@every_planner
def test_several_noise_streams_tell_mean_and_spread(make: Any, discrete: bool) -> None:
    world = ToyWorld(slip=0.5, discrete=discrete)
    settings = {"horizon": 2, "num_candidates": 30, "num_elites": 3, "num_noise_streams": 300}
    plan = make(**settings).plan(world, at(world, 6.0), Reward())
    many = plan.actions.expand(4000, -1, -1)
    streams = torch.arange(4000)
    state = at(world, 6.0)
    rollout = roll_candidates(world, state, many, noise_streams=streams, sampling=SamplingConfig())
    returns = rollout.discounted_return(1.0)
    assert plan.spread == pytest.approx(float(returns.std()), rel=0.15)
    assert plan.expected_return == pytest.approx(float(returns.mean()), abs=0.2)


def squares() -> tuple[Any, Any, Any]:
    """A token model, a state of it, and the action and step that came next."""
    model, episode = make_model(window=3), make_episode(9, 1)
    frames, action, state = (episode[n][None] for n in ("frames.top", "action", "state"))
    context = model.context(frames[:, :5, None], action[:, :5], state[:, :5])
    seen = Observation(
        frames=torch.from_numpy(frames[:, 5, None]), state=torch.from_numpy(state[:, 5])
    )
    return model, model.start(context), (torch.from_numpy(action[:, 4]), seen)


def test_what_is_tried_out_is_what_forks_come_to() -> None:
    """Again and again in the same memory, in between of other sizes, and after what happened."""
    model, state, observed = squares()
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        for sizes in ((6, 3), (4, 3), (6, 3)):
            actions = torch.rand(*sizes, 2, generator=generator) * 6.0 - 3.0
            drawn = SamplingConfig()
            fork = model.fork(state, len(actions), sizes[1], noise_streams=number)
            _, expected = model.roll(fork, actions, drawn)
            del fork, _
            got = model.try_out(state, actions, drawn, noise_streams=number)
            assert torch.equal(got.frame_tokens, expected.frame_tokens)
            torch.testing.assert_close(got.frame_nll, expected.frame_nll)
            assert torch.equal(got.context_rows, expected.context_rows)
        if number % 2:
            state, _ = model.observe(state, *observed)
    with pytest.raises(TokenwmError, match="a fork cannot be forked again"):
        model.try_out(model.fork(state, 2, 3), torch.zeros(4, 3, 2))
    with pytest.raises(TokenwmError, match="actions has shape"):
        model.try_out(model.select(state, torch.tensor([0, 0])), torch.zeros(3, 3, 2))


def test_candidates_may_be_imagined_approximately_and_elites_are_not() -> None:
    model, state, _ = squares()
    settings: dict[str, Any] = {"horizon": 2, "num_candidates": 12, "num_elites": 3}
    rough = CEM(approximation=Approximation(num_passes=2), **settings)
    plan = rough.plan(model, state, Reward())
    exact = roll_candidates(model, state, plan.actions[None])
    assert plan.expected_return == pytest.approx(float(exact.discounted_return(1.0)), abs=1e-5)
    assert plan.num_rollouts == 3 * 12 + 3 and model.approximation is None
    assert plan.spread is None
    with pytest.raises(TokenwmError, match="decodes in no passes"):
        rough.plan(ToyWorld(), at(ToyWorld(), 3.0), Reward())


@pytest.mark.parametrize("max_rows", [1000, 7])
def test_a_candidate_has_the_future_it_has_alone(max_rows: int) -> None:
    world = ToyWorld(slip=0.6)
    state = at(world, 8.0)
    candidates = torch.rand(50, 6, 1, generator=torch.Generator().manual_seed(0)) * 4.0 - 2.0
    drawn = SamplingConfig()
    together = roll_candidates(world, state, candidates, sampling=drawn, max_rows=max_rows)
    for row in (0, 31):
        alone = roll_candidates(world, state, candidates[row : row + 1], sampling=drawn)
        assert torch.equal(together.state[row], alone.state[0])  # type: ignore[index]
    same = roll_candidates(world, state, candidates[:1].repeat(50, 1, 1), sampling=drawn)
    assert same.state is not None and (same.state == same.state[:1]).all()  # the same luck


def test_objectives_that_stop_counting_change_the_plan() -> None:
    """The end of the line ends the episode: who is paid there and punished behind stops there."""
    world = ToyWorld(slip=0.0, goal=16.0)
    cost = Scores(lambda rollout: -torch.ones_like(rollout.termination_probability))
    plan = CEM(horizon=6, num_candidates=200).plan(world, at(world, 12.0), cost)
    assert plan.expected_return == pytest.approx(-2.0)  # ends after two steps, as soon as it can


def test_what_does_not_fit_is_refused() -> None:
    world, ids = ToyWorld(), ToyWorld(discrete=True)
    two = world.start(world.context(torch.tensor([[3.0], [4.0]])))
    for make, message in (
        (lambda: CEM().plan(world, two, Reward()), "the state has 2 rows"),
        (lambda: CEM().plan(ids, at(ids, 3.0), Reward()), "draws real actions"),
        (lambda: CategoricalCEM().plan(world, at(world, 3.0), Reward()), "draws ids"),
        (lambda: CEM(num_elites=65), "num_elites=65 of num_candidates=64"),
        (lambda: CEM(horizon=0), "horizon=0"),
        (lambda: CEM(seconds=0.0), "seconds=0.0"),
        (lambda: CEM(smoothing=1.0), "smoothing=1.0"),
        (lambda: CEM(chooses="last"), "chooses='last'"),  # type: ignore[arg-type]
        (lambda: ICEM(decay=0.5), "decay=0.5"),
        (lambda: MPPI(temperature=0.0), "temperature=0.0"),
        (lambda: BeamSearch(width=0), "width=0"),
        (lambda: GraphSearch().plan(world, at(world, 3.0), Reward()), "give GraphSearch"),
        (lambda: RandomShooting(prior_share=2.0), "prior_share=2.0"),
    ):
        with pytest.raises(TokenwmError, match=message):
            make()


def docstring_example() -> str:
    text = tokenwm.control.__doc__
    assert text is not None
    return textwrap.dedent(text.split("::\n", 1)[1])


def test_the_example_of_the_room_runs(tmp_path: Path) -> None:
    """Its five lines, on a token model: the future of the plan is that of its actions."""
    model = make_model(has_reward=False)
    save_model(tmp_path / "world_model" / "model", model)
    write_squares(tmp_path / "frames", {"train": (9,), "test": (14,)})
    names: dict[str, Any] = {"tokenwm": tokenwm}
    exec(docstring_example().replace("runs/quickstart", str(tmp_path)), names)
    plan, loaded, state = names["plan"], names["model"], names["state"]
    assert plan.actions.shape == names["actions"].shape == (5, 2)
    assert plan.actions.abs().max() <= 3.5
    # The state was not used up.
    _, rollout = loaded.roll(state, plan.actions[None], SamplingConfig(temperature=0.0))
    score = total(tokenwm.GoalImage(loaded, names["goal"]), rollout)
    assert float(score) == pytest.approx(plan.expected_return, abs=1e-5)
    assert torch.equal(rollout.frame_tokens, plan.rollout.frame_tokens)


def test_graph_search_compares_plans_of_one_length() -> None:
    """Where every step costs something, the shortest beginning is not the best plan."""
    world = Watched(settings={"discrete": True})

    def costs(rollout: Rollout) -> Tensor:
        return -1.0 + 5.0 * (rollout.frame_tokens[..., 0] == 0)

    plan = GraphSearch(horizon=8).plan(world, at(world, 10.0), Scores(costs))
    assert plan.actions[:5, 0].tolist() == [0] * 5 and plan.expected_return == 8 * 4 - 4 * 5


@pytest.mark.parametrize("make", [MPPI, partial(CEM, chooses="mean")], ids=["MPPI", "mean of CEM"])
def test_a_mean_that_is_ruled_out_gives_way_to_the_best(make: Callable[..., Any]) -> None:
    """Two ways round an obstacle, and their mean goes through it."""
    world = Watched()

    def around(rollout: Rollout) -> Tensor:
        off = rollout.actions[..., 0].abs()
        return torch.where(off < 0.9, -torch.inf, -(off - 1.0).abs())

    def nothing(rollout: Rollout) -> Tensor:
        return torch.full(rollout.frame_nll.shape, -torch.inf)

    plan = make(horizon=1, num_candidates=64).plan(world, at(world, 8.0), around)
    assert plan.expected_return > -torch.inf and plan.actions[0, 0].abs() >= 0.9
    with pytest.raises(NoPlanError, match="have no finite score"):
        make(horizon=2).plan(world, at(world, 8.0), nothing)


def test_a_plan_of_chunks_moves_on_by_actions_of_the_robot() -> None:
    plan = Plan(actions=torch.arange(8.0).reshape(2, 4), expected_return=0.0)  # 2 × 2 of 2 numbers
    moved = plan.shifted(1, actions_per_step=2).actions
    assert moved.tolist() == [[2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 6.0, 7.0]]
    assert torch.equal(plan.shifted(2, actions_per_step=2).actions[0], plan.actions[1])
