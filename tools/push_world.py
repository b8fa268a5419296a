"""The true dynamics of Push-T as a world to plan in, for ``push_to_goal.py``.

A plan that fails with the true dynamics fails by its cost or its search, and not by the model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from push_pairs import pose_in
from torch import Tensor

from tokenwm.data.readers.pictures.video import FrameResizer
from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.context import Context
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation

SUBSTEPS, SECONDS = 10, 0.01
"""Steps of the physics in one of the simulator, and their length."""
STIFFNESS, DAMPING = 100.0, 20.0
"""Of the controller that moves the pusher towards an action."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PushState:
    """Rows of the simulator.

    Attributes:
        bodies: ``(B, 12)``, of pusher and block: position, velocity, angle, angular velocity.
    """

    bodies: Floats


@dataclass(frozen=True, kw_only=True, repr=False)
class PushRollout(Rollout):
    """What really follows.

    Attributes:
        poses: ``(B, H, 5)`` float32: pusher and block, px, and the block's angle, radians.
    """

    poses: Tensor


class PushWorld:
    """Push-T itself, one row after another; the model says only what pictures are in tokens.

    A state is where the bodies are and how they move. Contacts of the moment are not in it, and
    where one begins with a contact, what follows may be another of the things that can happen: the
    pusher's way is always the recorded one, the block's in about nine of ten starts.

    Args:
        model: The model whose vocabulary actions and states have.
        look: Draws what is observed in the simulator, whose bodies are moved about.
        context: Of one row; what rollouts say that they started from.
        draws: Whether rollouts have the tokens of true pictures, which takes most of the time; if
            not, they are all 0.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        look: "Look",
        context: Context,
        *,
        draws: bool = False,
    ) -> None:
        self.model, self.simulator, self.look = model, look.simulator, look
        self.context, self.draws = context, draws
        self.vocabulary, self.control_rate = model.vocabulary, model.control_rate

    def now(self) -> PushState:
        """Where the simulator is."""
        return PushState(bodies=self._read()[None])

    def fork(self, state: PushState, num_copies: int, num_steps: int, **noise: Any) -> PushState:
        """Copies of every row."""
        return PushState(bodies=state.bodies.repeat(num_copies, axis=0))

    def select(self, state: PushState, rows: Tensor) -> PushState:
        """Some rows."""
        return PushState(bodies=state.bodies[rows.numpy()])

    def features(self, state: PushState) -> Tensor:
        """The bodies themselves."""
        return torch.from_numpy(state.bodies).float()

    def roll(
        self, state: PushState, actions: Tensor, sampling: SamplingConfig | None = None
    ) -> tuple[PushState, PushRollout]:
        """Take actions ``(B, H, A)``; where the simulator is stays as it was."""
        count = self.model.actions_per_step
        robot = self.model.unstack_actions(actions).double().numpy()
        ends, paths, frames = self.paths(state, robot, draw_every=count if self.draws else None)
        told = torch.from_numpy(paths[:, count - 1 :: count]).float()
        num_rows, num_steps = actions.shape[:2]
        zeros = torch.zeros(num_rows, num_steps)
        size = self.vocabulary.tokens_per_frame
        tokens = torch.zeros(num_rows, num_steps, size, dtype=torch.int64)
        if frames is not None:
            tokens = self.model.tokenizer.encode_frames(frames.flatten(0, 1)).view_as(tokens)
        position = self.model.units.encode_states(told[..., :2].numpy())
        rollout = PushRollout(
            actions=actions.float(),
            frame_tokens=tokens,
            state_tokens=position,
            state=told[..., :2],
            reward=None,
            termination_probability=zeros,
            frame_nll=zeros,
            frame_entropy=zeros,
            context=self.context,
            context_rows=torch.zeros(num_rows, dtype=torch.int64),
            poses=told,
        )
        return PushState(bodies=ends), rollout

    def paths(
        self, state: PushState, actions: Floats, draw_every: int | None = None
    ) -> tuple[Floats, Floats, Tensor | None]:
        """Where the robot's actions lead, one at a time.

        Args:
            state: ``B`` rows.
            actions: ``(B, T, 2)``, px.
            draw_every: Draw a picture after so many; None: none.

        Returns:
            The bodies in the end, ``(B, 12)``; poses ``(B, T, 5)`` as in :class:`PushRollout`; and
            the pictures, ``(B, T / draw_every, cameras, H, W, 3)`` uint8, or None.
        """
        before = self._read()
        ends, poses = state.bodies.copy(), np.empty((*actions.shape[:2], 5))
        pictures: list[Tensor] = []
        for row, steps in enumerate(actions):
            self._write(state.bodies[row])
            for number, action in enumerate(steps):
                self.step(action)
                pose = pose_in(self.simulator)
                poses[row, number] = (*pose.pusher, *pose.block, pose.angle)
                if draw_every is not None and not (number + 1) % draw_every:
                    pictures.append(self.look().frames[0])
            ends[row] = self._read()
        self._write(before)
        if not pictures:
            return ends, poses, None
        frames = torch.stack(pictures)
        return ends, poses, frames.view(len(actions), -1, *frames.shape[1:])

    def put(self, state: PushState) -> None:
        """Move the simulator to a state of one row."""
        self._write(state.bodies[0])

    def step(self, action: Floats) -> None:
        """Take one action of the robot, ``(2,)``, in the simulator itself."""
        agent, space = self.simulator.agent, self.simulator.space
        x, y = map(float, action)
        for _ in range(SUBSTEPS):
            (px, py), (vx, vy) = agent.position, agent.velocity
            agent.velocity = (
                vx + (STIFFNESS * (x - px) - DAMPING * vx) * SECONDS,
                vy + (STIFFNESS * (y - py) - DAMPING * vy) * SECONDS,
            )
            space.step(SECONDS)

    def _read(self) -> Floats:
        bodies = (self.simulator.agent, self.simulator.block)
        return np.array(
            [v for b in bodies for v in (*b.position, *b.velocity, b.angle, b.angular_velocity)]
        )

    def _write(self, numbers: Floats) -> None:
        space, bodies = self.simulator.space, (self.simulator.agent, self.simulator.block)
        for body, (x, y, vx, vy, angle, turning) in zip(bodies, numbers.reshape(2, 6), strict=True):
            body.angle = float(angle)
            body.position = float(x), float(y)
            body.velocity = float(vx), float(vy)
            body.angular_velocity = float(turning)
            space.reindex_shapes_for_body(body)


class Look:
    """What is observed in the simulator, drawn as it was recorded when it is called.

    The simulator draws only then: to draw every step takes most of its time.

    Args:
        reader: Where it was recorded.
        simulator: The environment, unwrapped.
    """

    def __init__(self, reader: ShardReader, simulator: Any) -> None:
        self.simulator = simulator
        height, width = reader.manifest.features["frames.top"].shape[:2]
        resize = reader.manifest.provenance["recipe"].get("resize", "crop")
        self._resizer = FrameResizer(height, width, resize)

    def __call__(self) -> Observation:
        """The picture and where the pusher is."""
        self.simulator.obs_type = "pixels_agent_pos"
        seen = self.simulator.get_obs()
        self.simulator.obs_type = "state"
        frame = torch.from_numpy(self._resizer.resize_image(seen["pixels"]))
        state = torch.from_numpy(seen["agent_pos"].astype(np.float32))
        return Observation(frames=frame[None, None], state=state[None])
