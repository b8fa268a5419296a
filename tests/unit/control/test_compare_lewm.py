"""The comparison with LeWM: what it reads, and what its planner is told to want."""

import json
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tokenwm.data.shards.reader import ShardReader

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
import compare_lewm  # noqa: E402
from lewm_model import (  # noqa: E402
    ActionOffsets,
    Cost,
    Windows,
    embedding_distance,
    pose_distance,
    pose_numbers,
)


def test_actions_are_relative_to_the_pusher_and_come_back() -> None:
    state = torch.tensor([[100.0, 200.0], [300.0, 50.0]])
    action = torch.tensor([[110.0, 190.0, 120.0, 180.0], [290.0, 70.0, 280.0, 90.0]])
    offsets = ActionOffsets(state, action)
    assert offsets.mean.tolist() == [0.0, 5.0, 0.0, 10.0]
    told = offsets.encode(state, action)
    assert told.mean(0).abs().max() < 1e-6 and told.std(0).sub(1.0).abs().max() < 1e-6
    torch.testing.assert_close(offsets.decode(state, told), action)
    assert (offsets.encode(state + 7.0, action + 7.0) == told).all()
    assert offsets.decode(state, 1e3 * torch.ones(2, 4)).max() == 512.0


def test_windows_stay_in_their_episode(pusht: Path) -> None:
    reader = ShardReader(pusht)
    windows = Windows(reader, "train", 4)
    lengths = [reader.episode(key).num_steps for key in reader.keys("train")]
    assert len(windows.frames) == sum(lengths)
    assert len(windows.first) == sum(length - 3 for length in lengths)
    episode = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    rows = windows.draw(500, torch.Generator().manual_seed(0))
    assert rows.shape == (500, 4) and (episode[rows] == episode[rows[:, :1]]).all()
    key = reader.keys("train")[1]
    first = lengths[0]
    recorded = torch.from_numpy(reader.frames(key)[:, 0])
    assert (windows.frames[first : first + lengths[1]] == recorded).all()


def test_what_is_wanted_counts_at_the_last_step_or_at_the_best_imagined_one() -> None:
    lewm: Any = SimpleNamespace(model=SimpleNamespace(rollout=None))
    imagined, goal = torch.tensor([[[0.0], [3.0], [1.0], [2.0]]]), torch.tensor([[0.0]])
    last, best = (Cost(lewm, embedding_distance, best=best) for best in (False, True))
    best.observed = 1  # the first was seen, not imagined
    assert last.cost(imagined, goal).tolist() == [4.0] and best.cost(imagined, goal).tolist() == [1]


@pytest.mark.parametrize(
    ("place", "turn", "wanted"),
    [((0.0, 0.0), 0.0, 0.0), ((12.0, 16.0), 0.0, 1.0), ((0.0, 0.0), 20.0, 1.0)],
    ids=["there", "20 px", "20 degrees"],
)
def test_poses_are_as_far_as_success_says(place: Any, turn: float, wanted: float) -> None:
    def pose(place: Any, degrees: float) -> torch.Tensor:
        truth = torch.tensor([[*place, math.radians(degrees)]])
        return pose_numbers(torch.tensor([[50.0, 60.0]]), truth)

    identity: Any = SimpleNamespace(readout=lambda z: z)
    distance = partial(pose_distance, identity)
    found = distance(pose(place, 175.0 + turn)[None], pose((0.0, 0.0), 175.0))
    assert found.shape == (1, 1) and found.item() == pytest.approx(wanted, abs=1e-4)


def test_it_is_trained_kept_and_plans(
    pusht: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "torch-world is not installed (pip install --no-deps torch-world==0.2.0)"
    pytest.importorskip("torch_world", reason=reason)
    monkeypatch.setattr("lewm_model.READOUT_STEPS", 5)
    monkeypatch.setattr("push_to_goal.BUDGET", 10)
    weights = tmp_path / "lewm.pt"
    given = [str(pusht), "--weights", str(weights), "--split", "train"]
    training = ["--minutes", "0.02", "--batch", "4", "--patch", "4", "--depth", "1"]
    assert compare_lewm.main([*given, *training]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lewm"]["steps"] >= 1 and found["lewm"]["settings"]["depth"] == 1
    assert list(found["lewm"]["errors"]) == [str(step) for step in range(6)]
    planning = ["--pairs", "1", "--samples", "4", "--rounds", "1", "--elites", "2"]
    results = []
    for _ in range(2):
        assert compare_lewm.main([*given, *planning, "--arms", *compare_lewm.WISHES]) == 0
        results.append(json.loads(capsys.readouterr().out))
        for arm in results[-1]["pairs"][0]["arms"].values():
            del arm["seconds"]
    assert results[0]["pairs"] == results[1]["pairs"]  # the same seed, the same plan
    assert list(results[0]["arms"]) == [f"{wish}_4x1" for wish in compare_lewm.WISHES]
    assert results[0]["lewm"] == found["lewm"]
