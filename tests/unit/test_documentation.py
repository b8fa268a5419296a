import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.documentation import python_blocks
from tests.moving_square import make_model, save_model, write_squares
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
    """Its Python runs as it stands, from a trained model and a dataset to the best candidate."""
    model = make_model(has_reward=has_reward)
    save_model(tmp_path / "world_model" / "model", model)
    written = write_squares(tmp_path / "frames", {"train": (9, 12), "test": (14, 15, 16, 17)})
    blocks = [text.replace("runs/quickstart", str(tmp_path)) for text in python_blocks("README.md")]
    choose, close_the_loop, plan, environment = blocks
    names: dict[str, Any] = {}
    exec(choose, names)
    starts, rollout, score = names["starts"], names["rollout"], names["score"]
    assert names["video"].shape == (8, 10, 1, 32, 32, 3)
    assert score.shape == (64,) and len(score.unique()) > 1  # its bins are coarse
    assert (names["best"] == names["candidates"][int(score.argmax())]).all()
    if has_reward:
        expected = (0.99 ** torch.arange(10) * rollout.survival * rollout.reward).sum(1)
    else:
        end, video = rollout.stop_probability, model.decode_frames(rollout).numpy() / 255.0
        torch.testing.assert_close(end.sum(1), torch.ones(64))
        last = starts.first_steps[0] + 4 + 9
        goal = written[starts.keys[0]]["frames.top"][last] / 255.0
        error = torch.from_numpy(((video - goal) ** 2).mean((2, 3, 4, 5)))
        expected = -(end * error).sum(1).float()
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)
    exec(close_the_loop, names)
    assert names["surprise"].shape == (1,)
    torch.testing.assert_close(names["rollout"].frame_nll, rollout.frame_nll, rtol=1e-4, atol=1e-4)
    exec(plan, names)
    assert names["plan"].actions.shape == (5, 2) and names["plan"].num_rollouts >= 64
    if has_reward:
        exec(environment, names)
        assert names["reward"].shape == names["info"]["frame_nll"].shape == (64,)
    # The futures that were best, broken: another is chosen, and it is said.
    is_best = score == score.max()
    with caplog.at_level(logging.WARNING):
        surprise = rollout.frame_nll.masked_fill(is_best[:, None], torch.nan)
        chosen = replace(rollout, frame_nll=surprise).best(score)
        assert score[chosen] == score[~is_best].max()
    assert f"{int(is_best.sum())} of 64 imagined rows are not finite and rank last" in caplog.text
    with torch.no_grad():
        model.world_model.transformer.norm.weight[0] = torch.nan
    save_model(tmp_path / "world_model" / "model", model)
    with pytest.raises(CheckpointError, match=r"weights of transformer\.norm\.weight are NaN"):
        exec(choose, names)
