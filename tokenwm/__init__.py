"""Token world models for robot learning: does the imagined future help the robot act?

``tokenwm.load(path)`` gives a trained model that can imagine, ``tokenwm.starts(root)`` recorded
steps to imagine from. All names are looked up on first use, so that ``import tokenwm`` costs
nothing and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenwm.control.controller import Controller as Controller
    from tokenwm.control.decision import ControllerConfig as ControllerConfig
    from tokenwm.control.goals import GoalImage as GoalImage
    from tokenwm.control.goals import GoalState as GoalState
    from tokenwm.control.goals import LearnedDistance as LearnedDistance
    from tokenwm.control.goals import TaskState as TaskState
    from tokenwm.control.limits import Limits as Limits
    from tokenwm.control.limits import load_limits as load_limits
    from tokenwm.control.objectives import Objective as Objective
    from tokenwm.control.objectives import Reward as Reward
    from tokenwm.control.objectives import Scores as Scores
    from tokenwm.control.penalties import ActionSize as ActionSize
    from tokenwm.control.penalties import OutsideData as OutsideData
    from tokenwm.control.planners.base import Plan as Plan
    from tokenwm.control.planners.base import Planner as Planner
    from tokenwm.control.planners.beam import BeamSearch as BeamSearch
    from tokenwm.control.planners.categorical import CategoricalCEM as CategoricalCEM
    from tokenwm.control.planners.cem import CEM as CEM
    from tokenwm.control.planners.graph import GraphSearch as GraphSearch
    from tokenwm.control.planners.icem import ICEM as ICEM
    from tokenwm.control.planners.mppi import MPPI as MPPI
    from tokenwm.control.planners.random_shooting import RandomShooting as RandomShooting
    from tokenwm.control.rank import rank as rank
    from tokenwm.control.verify import verify as verify
    from tokenwm.errors import TokenwmError as TokenwmError
    from tokenwm.evaluation.config import EvaluationConfig as EvaluationConfig
    from tokenwm.evaluation.evaluate import evaluate as evaluate
    from tokenwm.heads.distance import Distance as Distance
    from tokenwm.heads.doubt import Doubt as Doubt
    from tokenwm.heads.folder import load_head as load_head
    from tokenwm.imagination.approximate import Approximation as Approximation
    from tokenwm.imagination.context import Context as Context
    from tokenwm.imagination.env import WorldModelEnv as WorldModelEnv
    from tokenwm.imagination.env import WorldModelVectorEnv as WorldModelVectorEnv
    from tokenwm.imagination.episodes import ImaginedEpisodes as ImaginedEpisodes
    from tokenwm.imagination.goals import goal_scores as goal_scores
    from tokenwm.imagination.rollout import Rollout as Rollout
    from tokenwm.imagination.sampling import SamplingConfig as SamplingConfig
    from tokenwm.imagination.stable_baselines import WorldModelVecEnv as WorldModelVecEnv
    from tokenwm.imagination.starts import recorded_starts as starts
    from tokenwm.imagination.token_world_model import TokenWorldModel as TokenWorldModel
    from tokenwm.imagination.token_world_model import load as load
    from tokenwm.imagination.world import Observation as Observation
    from tokenwm.imagination.world import Policy as Policy
    from tokenwm.imagination.world import World as World
    from tokenwm.policies.acting import ClonedPolicy as ClonedPolicy
    from tokenwm.policies.acting import GoalProposal as GoalProposal
    from tokenwm.policies.cloning import GoalPolicy as GoalPolicy
    from tokenwm.policies.learned import train_heads as train_heads
    from tokenwm.serving.client import WorldModelClient as WorldModelClient

__version__ = "0.1.0"

_PLACES = {
    "ActionSize": "control.penalties",
    "Approximation": "imagination.approximate",
    "BeamSearch": "control.planners.beam",
    "CEM": "control.planners.cem",
    "CategoricalCEM": "control.planners.categorical",
    "ClonedPolicy": "policies.acting",
    "Context": "imagination.context",
    "Controller": "control.controller",
    "ControllerConfig": "control.decision",
    "Distance": "heads.distance",
    "Doubt": "heads.doubt",
    "EvaluationConfig": "evaluation.config",
    "GoalImage": "control.goals",
    "GoalPolicy": "policies.cloning",
    "GoalProposal": "policies.acting",
    "GoalState": "control.goals",
    "GraphSearch": "control.planners.graph",
    "ICEM": "control.planners.icem",
    "ImaginedEpisodes": "imagination.episodes",
    "LearnedDistance": "control.goals",
    "Limits": "control.limits",
    "MPPI": "control.planners.mppi",
    "Objective": "control.objectives",
    "Observation": "imagination.world",
    "OutsideData": "control.penalties",
    "Plan": "control.planners.base",
    "Planner": "control.planners.base",
    "Policy": "imagination.world",
    "RandomShooting": "control.planners.random_shooting",
    "Reward": "control.objectives",
    "Rollout": "imagination.rollout",
    "SamplingConfig": "imagination.sampling",
    "Scores": "control.objectives",
    "TaskState": "control.goals",
    "TokenWorldModel": "imagination.token_world_model",
    "TokenwmError": "errors",
    "World": "imagination.world",
    "WorldModelClient": "serving.client",
    "WorldModelEnv": "imagination.env",
    "WorldModelVecEnv": "imagination.stable_baselines",
    "WorldModelVectorEnv": "imagination.env",
    "evaluate": "evaluation.evaluate",
    "goal_scores": "imagination.goals",
    "load": "imagination.token_world_model",
    "load_head": "heads.folder",
    "load_limits": "control.limits",
    "rank": "control.rank",
    "starts": "imagination.starts",
    "train_heads": "policies.learned",
    "verify": "control.verify",
}
_OTHER_NAMES = {"starts": "recorded_starts"}
_EXTRAS = {"gymnasium": "rl", "stable_baselines3": "sb3"}

__all__ = ["__version__", "load", "starts"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tokenwm' has no attribute {name!r}")
    try:
        module = import_module(f"tokenwm.{_PLACES[name]}")
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        remedy = f"pip install 'tokenwm[{_EXTRAS[error.name]}]'"
        message = f"tokenwm.{name} needs {error.name}: {remedy}"
        raise ModuleNotFoundError(message, name=error.name) from error
    found = getattr(module, _OTHER_NAMES.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_PLACES})
