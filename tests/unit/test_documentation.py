import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.documentation import python_blocks
from tests.moving_square import make_episode, make_model, save_model
from tests.small_datasets import LENGTHS, SIZE, write_frame_shards
from tokenwm.errors import CheckpointError


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its streams to the GC
def test_shards_can_be_read_with_plain_webdataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_frame_shards(tmp_path / "data" / "pusht")
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in python_blocks("docs/shards.md") if "webdataset" in block)
    names: dict[str, object] = {}
    exec(example, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"train_{index} ({length}, {SIZE}, {SIZE}, 3) ({length}, 2) move"
        for index, length in enumerate(LENGTHS["train"])
    ]
    last = f"train_{len(LENGTHS['train']) - 1}"
    assert (names["action"] == written[last]["action"]).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize("has_reward", [True, False])
def test_the_readme_chooses_by_reward_or_by_goal_and_never_what_is_broken(
    has_reward: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(has_reward=has_reward)
    save_model(tmp_path / "world_model" / "model", model)
    example = python_blocks("README.md")[0].replace("runs/quickstart", str(tmp_path))
    episode = make_episode(4, seed=1)
    candidates = np.random.default_rng(0).uniform(-3, 3, (6, 4, 2)).astype(np.float32)
    names: dict[str, Any] = {
        "frames": episode["frames.top"][None, :, None],
        "past_actions": episode["action"][None, :3],
        "states": episode["state"][None],
        "candidates": candidates,
    }
    exec(example, names)
    rollout, score = names["rollout"], names["score"]
    assert score.shape == (6,) and len(score.unique()) == 6
    assert names["best"] == int(score.argmax())
    assert names["video"].shape == (6, 4, 1, 32, 32, 3)
    if has_reward:
        expected = (0.99 ** torch.arange(4) * rollout.survival * rollout.reward).sum(1)
    else:
        end = rollout.stop_probability
        torch.testing.assert_close(end.sum(1), torch.ones(6))
        error = names["video"].float().numpy() - episode["frames.top"][:1, None].astype(float)
        expected = torch.from_numpy(-(end.numpy() * (error**2).mean((2, 3, 4, 5))).sum(1)).float()
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)
    # The future that was best, broken: another is chosen, and it is said.
    surprise = rollout.frame_nll.clone()
    surprise[names["best"]] = torch.nan
    with caplog.at_level(logging.WARNING):
        broken = replace(rollout, frame_nll=surprise)
        assert broken.best(score) == int(score.topk(2).indices[1])
    assert "1 of 6 imagined rows are not finite and rank last" in caplog.text
    with torch.no_grad():
        model.world_model.transformer.norm.weight[0] = torch.nan
    save_model(tmp_path / "world_model" / "model", model)
    with pytest.raises(CheckpointError, match=r"weights of transformer\.norm\.weight are NaN"):
        exec(example, names)
