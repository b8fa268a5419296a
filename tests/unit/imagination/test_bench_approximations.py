import json
import runpy
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[3] / "tools/bench_approximations.py"


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def way(name: str, passes: float, psnr: float) -> dict[str, Any]:
    return {
        "way": name,
        "passes_per_step": passes,
        "psnr": {"1": psnr, "5": psnr - 2.0},
        "surprise_of_the_exact_model": 1.0 / passes,
    }


def test_figures_are_drawn_without_measuring_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baselines = [
        {"way": name, "psnr": {"1": psnr, "5": psnr}}
        for name, psnr in (("persistence", 20.0), ("reconstruction", 30.0))
    ]
    ways = [
        way("exact", 2.7, 29.0),
        way("greedy", 2.5, 29.5),
        way("8 passes", 8.0, 29.0),
        way("2 passes", 2.0, 28.0),
    ]
    figures, picture = tmp_path / "figures.json", tmp_path / "curves.png"
    figures.write_text(json.dumps({"results": baselines + ways}))
    run_tool(monkeypatch, "--figures", figures, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert json.loads(capsys.readouterr().out) == json.loads(figures.read_text())


def test_something_to_measure_or_to_draw_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "--plot", "curves.png")
    assert "give --model and --data, or --figures" in capsys.readouterr().err
