"""Futures ranked by a picture of the goal."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tokenwm
from tests.moving_square import make_episode, make_model
from tokenwm.errors import TokenwmError
from tokenwm.sequence.tokens import Tokens


@pytest.mark.parametrize("by", ["pixels", "tokens"])
@pytest.mark.parametrize("cameras", [("top",), ("top", "side")])
def test_the_future_that_comes_nearest_is_best(cameras: tuple[str, ...], by: str) -> None:
    model = make_model(cameras=cameras, has_reward=False)
    episode = make_episode(9, 1)
    frames = np.repeat(episode["frames.top"][None, :, None], len(cameras), axis=2)
    context = model.context(frames[:, :3], episode["action"][None, :3], episode["state"][None, :3])
    context = replace(context, anchor=None)  # pixels are those of the tokens alone
    rollout = model.imagine(context, np.zeros((4, 3, 2)))
    # Row 2 ends where row 0 is at the last step; nothing ends before.
    tokens = rollout.frame_tokens.clone()
    tokens[2, -1] = model.tokenizer.encode_frames(torch.from_numpy(frames[:, 7]))[0]
    never = torch.zeros_like(rollout.termination_probability)
    rollout = replace(rollout, frame_tokens=tokens, termination_probability=never)
    goal = frames[0, 7] if len(cameras) > 1 else frames[0, 7, 0]
    if by == "pixels":
        goal = model.decode_frames(rollout, rows=[2])[0, -1].numpy()
    scores = tokenwm.goal_scores(model, rollout, goal, by=by)
    assert scores.shape == (4,) and scores.dtype == torch.float32
    assert scores[2] == pytest.approx(0.0, abs=1e-6) and rollout.best(scores) == 2
    assert (scores[[0, 1, 3]] < -1e-4).all()
    # If the first action ends all, only where it led counts.
    ends = replace(rollout, termination_probability=never + 1.0)
    first = tokenwm.goal_scores(model, rollout.steps(slice(0, 1)), goal, by=by)
    torch.testing.assert_close(tokenwm.goal_scores(model, ends, goal, by=by), first)


def test_a_goal_that_is_no_picture_is_refused() -> None:
    model = make_model()
    episode = make_episode(3, 1)
    frames, action, state = (episode[n][None] for n in ("frames.top", "action", "state"))
    rollout = model.imagine(model.context(frames[:, :, None], action, state), np.zeros((2, 1, 2)))
    for goal, by, message in (
        (np.zeros((16, 16, 3), dtype=np.uint8), "pixels", "goal has shape"),
        (np.zeros((32, 32, 3)), "pixels", "expected uint8"),
        (frames[0, 0], "smell", "by='smell'; choose pixels, tokens or expected"),
    ):
        with pytest.raises(TokenwmError, match=message):
            tokenwm.goal_scores(model, rollout, goal, by=by)  # type: ignore[arg-type]


@torch.inference_mode()
def test_expected_codes_are_means_over_all_codes_of_a_full_pass() -> None:
    model = make_model()
    episode = make_episode(5, 1)
    frames, action, state = (episode[name][None] for name in ("frames.top", "action", "state"))
    context = model.context(frames[:, :2, None], action[:, :2], state[:, :2])
    actions = np.stack([action[0, 1:4], -action[0, 1:4]])  # two candidates of three steps
    rollout = model.imagine(context, actions, sampling=tokenwm.SamplingConfig())
    # The context's last action is the first that is imagined; the last step's does not count.
    taken = torch.cat(
        [
            context.tokens.action[:, :1].repeat(2, 1, 1),
            model.encode_actions(rollout.actions),
            torch.zeros(2, 1, 2, dtype=torch.int64),
        ],
        dim=1,
    )
    after = Tokens(rollout.frame_tokens, rollout.state_tokens, taken[:, 2:])
    tokens = Tokens.cat([context.tokens.repeat(2), after], dim=1)._replace(action=taken)
    hidden = model.world_model(tokens).frame_hidden[:, 1:]
    logits = model.world_model.frame_logits(hidden, tokens.frame[:, 1:-1])
    every = torch.arange(model.tokenizer.codebook_size)[None]
    expected = (logits.softmax(-1) @ model.tokenizer.quantizer.codes_of(every)[0]).flatten(2)
    found = model.expected_codes_of(rollout)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # They lie between codes, and as near to a goal as that.
    assert (found - model.features_of(rollout)[..., : model.num_codes]).abs().max() > 0.01
    goal = episode["frames.top"][3]
    codes = model.goal_features(goal)[:, : model.num_codes]
    torch.testing.assert_close(
        tokenwm.GoalImage(model, goal, by="expected")(rollout),
        -(found - codes).square().mean(-1),
    )
