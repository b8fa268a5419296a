"""Intervals hold what they promise: over simulated sweeps, 90 % of them hold the truth."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.small_sweeps import SMALL_LAW, best_size, grid_points

TOOL = Path(__file__).parents[4] / "tools" / "scaling_coverage.py"
NOISE = 0.003
"""Of log loss, from run to run. With less the intervals are a little short, with more too long."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("scaling_coverage", TOOL)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("heavy_tails", [False, True], ids=["normal", "heavy_tails"])
def test_ninety_per_cent_intervals_hold_the_truth_in_ninety_per_cent(
    tool: ModuleType, heavy_tails: bool
) -> None:
    """200 × 120 fits: the binomial error of a coverage of 0.9 is 0.02."""
    found = tool.coverage(
        num_sweeps=200, num_replicates=120, noise=NOISE, heavy_tails=heavy_tails, seed=1
    )
    assert set(found) == set(tool.QUANTITIES)
    assert all(0.85 <= share <= 0.95 for share in found.values()), found


def test_the_simulated_truth_is_that_of_the_law(tool: ModuleType) -> None:
    assert dict(tool.LAW) == dict(SMALL_LAW)
    points = grid_points(noise=0.0)
    assert sorted({point.num_parameters for point in points}) == pytest.approx(tool.SIZES)
    assert sorted({point.num_tokens for point in points}) == pytest.approx(tool.TOKENS)
    laws = tool.Laws(
        irreducible=np.array([SMALL_LAW["E"]]),
        log_a=np.log([SMALL_LAW["A"]]),
        log_b=np.log([SMALL_LAW["B"]]),
        alpha=np.array([SMALL_LAW["alpha"]]),
        beta=np.array([SMALL_LAW["beta"]]),
    )
    truth = tool.quantities(laws, float(np.log(1e16)))
    assert np.exp(truth[0, 5]) == pytest.approx(best_size(1e16, SMALL_LAW))


def test_the_tool_prints_json(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sweeps", "3", "--replicates", "20", "--noise", "0.002"]
    monkeypatch.setattr("sys.argv", [str(TOOL), *options])
    tool.main()
    printed = json.loads(capsys.readouterr().out)
    assert (printed["sweeps"], printed["runs"], printed["confidence"]) == (3, 25, 0.9)
    assert [item["heavy_tails"] for item in printed["results"]] == [False, True]
    for item in printed["results"]:
        assert set(item["coverage"]) == set(tool.QUANTITIES)
        assert all(0.0 <= share <= 1.0 for share in item["coverage"].values())
