"""The share of a gap that plans close, joined over the same episodes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenwm.errors import TokenwmError

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
from closed_loop_gap import BEST, NOTHING, RANDOM, Returns, joined  # noqa: E402


def arm(rewards: list[float], first: int = 0) -> Returns:
    seeds = range(first, first + len(rewards))
    return Returns.of([(s, r, 5, r > 0.0) for s, r in zip(seeds, rewards, strict=True)])


def test_shares_are_of_the_episodes_that_all_have() -> None:
    arms = {
        RANDOM: arm([-4.0, -6.0, 99.0]),
        "plans": arm([77.0, -1.0, -1.0], first=-1),  # the same episodes begin at 0
        BEST: arm([0.0, 0.0]),
        NOTHING: arm([-2.0, -2.0]),
    }
    found = joined(arms)
    assert found["plans"]["episodes"] == 2
    assert found["plans"]["share of the gap from random"][0] == pytest.approx(0.8)
    low, high = found["plans"]["share of the gap from random"][1:]
    assert (low, high) == (pytest.approx(0.75), pytest.approx(5 / 6))
    assert found["plans"]["share of the gap from nothing"][0] == pytest.approx(0.5)
    assert found["plans"]["above random"] == pytest.approx([4.0, 3.0, 5.0])
    assert "above random" not in found[RANDOM] and "above nothing" in found[RANDOM]


def test_successes_are_ends_with_a_reward() -> None:
    arms = {RANDOM: arm([0.0] * 10), BEST: arm([0.9] * 10), "plans": arm([0.9] * 9 + [0.0])}
    found = joined(arms)
    assert found["plans"]["successes"] == 9 and found[RANDOM]["successes"] == 0
    assert found["plans"]["success"] == pytest.approx([0.9, 0.596, 0.982], abs=0.001)


def test_runs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenwmError, match="no run is called random"):
        joined({"plans": arm([1.0])})
    with pytest.raises(TokenwmError, match="no episode is in all"):
        joined({RANDOM: arm([1.0]), "plans": arm([1.0], first=5)})
    with pytest.raises(TokenwmError, match="control.json cannot be read"):
        Returns.read(tmp_path)
    episode = {"env_seed": 7, "reward": 1.5, "num_steps": 3, "terminated": True}
    (tmp_path / "control.json").write_text(json.dumps({"episodes": [episode]}))
    read = Returns.read(tmp_path)
    assert read.rewards.tolist() == [1.5] and np.all(read.terminated)
    assert Returns.cat([read, arm([2.0])]).seeds.tolist() == [7, 0]
