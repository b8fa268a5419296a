"""A world model whose robot goes where it is told: real states and caches, and a known answer.

The robot, a square, moves towards the target by at most :data:`REACH` pixels a step; luck, which
depends on the seed and the step, puts it up to a pixel to the left or right.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tests.moving_square import SIZE, SQUARE, bins, make_tokenizer
from tokenwm.checkpoint import LoadedWorldModel, tokenizer_hash
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

ROOM = float(SIZE - SQUARE)
REACH = 3.0


class TableModel(TokenWorldModel):
    """See above. ``decode_frames`` draws what the state says; frame tokens mean nothing."""

    def step(self, state, actions, sampling=None):  # type: ignore[no-untyped-def]
        before, step = self.state_of(state), int(state.step)
        following, rollout = super().step(state, actions, sampling)
        assert before is not None
        target = torch.as_tensor(actions)
        luck = (following.seeds * 5 + step * 7) % 3 - 1.0
        after = before + (target - before).clamp(-REACH, REACH)
        after = (after + torch.stack([luck, torch.zeros_like(luck)], dim=1)).clamp(0.0, ROOM)
        decoding = replace(
            following.decoding,
            state_tokens=self.units.encode_states(after),
            state_values=self.units.state_values(after),
        )
        return replace(following, decoding=decoding), replace(rollout, state=after[:, None])

    def decode_frames(self, rollout: Rollout, **_: object) -> Tensor:
        assert rollout.state is not None
        frames = np.full((*rollout.state.shape[:2], 1, SIZE, SIZE, 3), 90, dtype=np.uint8)
        for row, path in enumerate(rollout.state.numpy()):
            for number, (x, y) in enumerate(path.round().astype(int)):
                frames[row, number, 0, y : y + SQUARE, x : x + SQUARE] = (230, 90, 40)
        return torch.from_numpy(frames)


def make_table() -> TableModel:
    torch.manual_seed(0)
    tokenizer = make_tokenizer().eval()
    vocabulary = Vocabulary(
        codebook_size=tokenizer.codebook_size,
        code_levels=tokenizer.config.code_levels,
        num_cameras=1,
        grid=tokenizer.grid,
        action=replace(bins(0.0, ROOM, 24), units="px"),
        state=replace(bins(0.0, ROOM, 48), units="px"),
        has_reward=True,
        reward_range=(0.0, 1.0),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    transformer = TransformerConfig(dim=16, num_layers=1, num_heads=2, window=3)
    world_model = WorldModel(WorldModelConfig(transformer=transformer), vocabulary).eval()
    model = TableModel(
        LoadedWorldModel(
            world_model=world_model,
            tokenizer=tokenizer,
            control_rate=10.0,
            cameras=("top",),
            provenance={},
            tokenizer_provenance={},
        )
    )
    model.approximation = Approximation(num_passes=2)
    return model
