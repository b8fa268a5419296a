"""``tokenwm control MODEL --out DIR``: a model decides in a simulator, episode by episode."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tokenwm
from tokenwm.cli.console import console_of, give, say
from tokenwm.cli.devices import take_device
from tokenwm.cli.made_before import MadeBefore, files_below
from tokenwm.cli.options import parse
from tokenwm.cli.options.models import PLANNERS
from tokenwm.cli.progress import show_progress
from tokenwm.cli.verbs.evaluate import model_files
from tokenwm.control.acted import ClosedLoop
from tokenwm.control.closed_loop import Agent, ClosedLoopConfig, RandomAgent, run_closed_loop
from tokenwm.control.closed_loop_page import FIGURES, sentences, write_closed_loop
from tokenwm.control.controller import Controller
from tokenwm.control.decision import ControllerConfig
from tokenwm.control.goal_reaching import (
    Nearness,
    RecordedGoal,
    are_places,
    goal_loop,
    recorded_goals,
    seen_goal,
    straight_to,
)
from tokenwm.control.goals import GoalImage, GoalState, LearnedDistance
from tokenwm.control.limits import load_limits
from tokenwm.control.objectives import Objective, Reward
from tokenwm.control.planners.icem import ICEM
from tokenwm.control.planners.suited import suited_cem
from tokenwm.control.proposals import Proposal, Together
from tokenwm.control.recordings import clear_recordings
from tokenwm.control.simulator import Simulator, simulator_for
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.tasks import Progress
from tokenwm.data.storage.atomic import make_folder
from tokenwm.errors import TokenwmError
from tokenwm.heads.distance import Distance
from tokenwm.heads.doubt import Doubt
from tokenwm.heads.readout import readout_for
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.policies.acting import GoalProposal
from tokenwm.policies.cloning import GoalPolicy
from tokenwm.strict import key_values, plain


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("control", argv)
    console = console_of(arguments)
    config = ClosedLoopConfig(
        num_episodes=arguments.episodes,
        seed=arguments.seed,
        num_films=arguments.films,
        in_real_time=arguments.deadline is not None,
    )
    if arguments.goals is not None:
        check_goals_alone(arguments)
    out: Path = arguments.out
    inputs = [
        *model_files(arguments.model),
        *filter(None, (arguments.goal, arguments.goals, arguments.limits)),
    ]
    made_before = MadeBefore("control", out, arguments, inputs)
    if made_before.is_kept(arguments, console):
        return 0
    device = take_device(arguments.device, console)
    model = tokenwm.load(arguments.model, device, dtype=getattr(torch, arguments.dtype))
    if arguments.planner is None:
        arguments.planner = "icem" if suited_cem(model.vocabulary) is ICEM else "categorical"
    changes = key_values("--set", arguments.set)
    if arguments.steps is not None:
        changes["max_steps"] = arguments.steps
    simulator = simulator_for(model, arguments.env, changes)
    agent = agent_of(model, arguments) if arguments.goals is None else None
    make_folder(out)
    about = {
        "model": str(arguments.model),
        "env_id": simulator.options.env_id,
        "planner": arguments.planner,
        "objective": arguments.objective,
        "seed": arguments.seed,
        "options": {name: str(value) for name, value in vars(arguments).items()},
    }
    with show_progress(console, "control") as show:

        def progress(done: int, total: int) -> None:
            show(Progress(stage="episodes", done=done, total=total, message=""))

        if agent is None:
            loop = to_goals(model, simulator, arguments, config, about, progress)
        else:
            loop = run_closed_loop(
                model, agent, simulator, out, config, about=about, progress=progress
            )
    page = write_closed_loop(out, loop)
    result = {"page": str(page), "figures": str(out / FIGURES)}
    made_before.save(files_below(out), {**result, **plain(loop, without=("film", "plans"))})
    for sentence in sentences(loop):
        say(console, f"• {sentence}")
    say(console, f"page: {page}")
    give(arguments, made_before.result)
    return 0


def check_goals_alone(arguments: argparse.Namespace) -> None:
    """Refuse options that say nothing beside recorded goals.

    Raises:
        TokenwmError: One is given.
    """
    given = {
        "--goal": arguments.goal is not None,
        "--objective": arguments.objective != "reward",
        "--discount": arguments.discount != 1.0,
        "--steps": arguments.steps is not None,
        "--env": arguments.env is not None,
        "--set": bool(arguments.set),
    }
    named = ", ".join(name for name, is_given in given.items() if is_given)
    if named:
        raise TokenwmError(
            f"{named} beside --goals: what is wanted, how long it may take and where it is done "
            "follow from the recorded goals; leave out one or the other"
        )


def to_goals(
    model: TokenWorldModel,
    simulator: Simulator,
    arguments: argparse.Namespace,
    config: ClosedLoopConfig,
    about: dict[str, Any],
    progress: Callable[[int, int], None],
) -> ClosedLoop:
    """Recorded goals, tried one after the other.

    Raises:
        TokenwmError: The data are not like the model's own, or tell no goals.
    """
    reader = ShardReader(arguments.goals)
    check_data_fits(model, reader)
    nearness = Nearness.of(reader, simulator)
    steps = max(1, round(arguments.ahead * model.control_rate))
    goals = recorded_goals(reader, nearness, count=config.num_episodes, steps=steps)
    readout = readout_for(model, reader)
    if readout is None:
        raise TokenwmError(f"{reader.root}: no readout of its task state can be trained")

    def agent_for(goal: RecordedGoal) -> Agent:
        objective = seen_goal(model, readout, nearness, goal)
        straight = straight_to(goal.state, model.actions_per_step) if are_places(reader) else None
        return agent_of(model, arguments, objective, picture=goal.picture, proposal=straight)

    clear_recordings(arguments.out)  # of a run before: none is kept here
    about = {**about, "objective": f"recorded goals {arguments.ahead:g} s ahead"}
    return goal_loop(
        model, reader, simulator, goals, agent_for, config=config, about=about, progress=progress
    )


def agent_of(
    model: TokenWorldModel,
    arguments: argparse.Namespace,
    objective: Objective | None = None,
    picture: NDArray[Any] | None = None,
    proposal: Proposal | None = None,
) -> Agent:
    """Who acts, as the options say.

    Args:
        model: The model.
        arguments: The options.
        objective: What is wanted; None: what the options say.
        picture: Of the goal, for the prior.
        proposal: Candidates, before those of the prior.

    Raises:
        TokenwmError: An option is impossible, or does not fit the model.
    """
    if arguments.planner == "random":
        if arguments.limits is not None or arguments.safe_action:
            raise TokenwmError(
                "--planner random knows no limits; leave --limits and --safe-action out"
            )
        return RandomAgent(model)
    module, name = PLANNERS[arguments.planner].split(":")
    planner = getattr(importlib.import_module(f"tokenwm.control.planners.{module}"), name)
    settings: dict[str, Any] = {"horizon": arguments.horizon, "seed": arguments.seed}
    tries_all = arguments.planner in ("beam", "graph")
    if arguments.planner == "graph":
        settings["width"] = arguments.candidates
    if not tries_all:
        count = arguments.candidates
        settings |= {"num_candidates": count, "num_elites": max(1, count // 8)}
        settings["num_rounds"] = arguments.rounds
    if arguments.passes is not None:
        settings["approximation"] = Approximation(num_passes=arguments.passes)
    if arguments.prior and tries_all:
        raise TokenwmError(
            f"--prior: --planner {arguments.planner} tries every action and takes no proposals"
        )
    if arguments.prior:
        if picture is None and arguments.goal is not None:
            picture = read_goal(arguments.goal)
        goal = None if picture is None else model.goal_features(picture)
        prior = GoalProposal(GoalPolicy.load(model), goal)
        settings["prior"] = prior if proposal is None else Together(proposal, prior)
    elif proposal is not None and not tries_all:
        settings["prior"] = proposal
    if arguments.doubt:
        model.doubt = Doubt.load(model)
    if arguments.deadline is not None:  # what is left is for observing, and for the last round
        settings["seconds"] = 0.8 * arguments.deadline
    safe = arguments.safe_action
    every = model.actions_per_step if arguments.every is None else arguments.every
    return Controller(
        model,
        planner(**settings),
        objective_of(model, arguments) if objective is None else objective,
        ControllerConfig(every=every, deadline=arguments.deadline),
        limits=None if arguments.limits is None else load_limits(arguments.limits),
        safe_action=None if not safe else np.array(safe, dtype=np.float32),
    )


def objective_of(model: TokenWorldModel, arguments: argparse.Namespace) -> Objective:
    """The objective that the options ask for.

    Raises:
        TokenwmError: The model predicts no reward, or a goal is missing or does not fit.
    """
    if arguments.objective == "reward":
        if not model.vocabulary.has_reward:
            raise TokenwmError("the model predicts no reward; choose another --objective")
        if not 0.0 <= arguments.discount <= 1.0:
            raise TokenwmError(f"--discount {arguments.discount:g}: use a number in [0, 1]")
        return Reward(discount=arguments.discount)
    if arguments.goal is None:
        raise TokenwmError(f"--objective {arguments.objective} needs --goal FILE")
    goal = read_goal(arguments.goal)
    if arguments.objective == "goal-image":
        return GoalImage(model, goal)
    if arguments.objective == "distance":
        return LearnedDistance(model, Distance.load(model), model.goal_features(goal))
    return GoalState(model.vocabulary, goal)


def read_goal(path: Path) -> NDArray[Any]:
    """A picture, or the array of an ``.npy`` file.

    Raises:
        TokenwmError: It cannot be read.
    """
    try:
        if path.suffix == ".npy":
            array: NDArray[Any] = np.load(path, allow_pickle=False)
            return array
        from PIL import Image

        return np.asarray(Image.open(path).convert("RGB"))
    except (OSError, ValueError, EOFError) as error:
        raise TokenwmError(f"goal {path} cannot be read: {error}") from error
