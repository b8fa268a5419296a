"""``tokenwm sweep fit``: files, figures, refusals, and a page that needs no network."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.small_sweeps import (
    SMALL_LAW,
    at_other_rates,
    best_size,
    grid_points,
    level_points,
    with_metrics,
    write_sweep,
)
from tokenwm.cli.options import parse
from tokenwm.cli.verbs.sweep_fit import main
from tokenwm.errors import SweepError, TokenwmError

STRANGE = "<b>[red]{{ 7 * 7 }}"
"""A stranger's name of a run."""


def write_points(path: Path, header: list[str]) -> Path:
    """Runs under the given names; like the published file it has colours and no tokens."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for point in level_points(num_sizes=12):
            writer.writerow([point.loss, point.num_parameters, "#aabbcc", point.flops])
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sweep folder with a run that failed and one that is far off."""
    folder = tmp_path_factory.mktemp("sweep")
    points = with_metrics(grid_points(noise=0.002))
    write_sweep(folder, [*points, *at_other_rates(points[0], {5e-4: 1.01, 2e-3: 0.96})])
    (folder / "runs" / "n4_d0" / "result.json").unlink()
    (folder / "runs" / "n0_d0").rename(folder / "runs" / STRANGE)
    imagining = ["--imagined-steps", "1e9", "--tokens-per-imagined-step", "66"]
    assert main([str(folder), "--budget", "1e16", "--replicates", "100", *imagining]) == 0
    return folder / "fit"


def test_every_figure_is_in_the_json(report: Path) -> None:
    values = json.loads((report / "fit.json").read_text())
    choice = values["recommendation"]["choice"]
    size = choice["num_parameters"]
    assert size["low"] < best_size(1e16, SMALL_LAW) < size["high"]
    assert values["law"]["E"]["value"] == pytest.approx(SMALL_LAW["E"], rel=0.1)
    assert len(values["runs"]) == 24
    assert values["left_out"][0]["path"] == "n4_d0"
    assert len(values["bootstrap"]["alpha"]) == 100
    assert [item["name"] for item in values["methods"]] == [
        "parametric law",
        "IsoFLOP parabolas",
        "loss envelope",
    ]
    assert values["hold_out"]["median_absolute_error"] < 0.02
    assert {item["name"] for item in values["downstream"]} == {"rollout_psnr@5", "unrelated"}
    lifetime = values["recommendation"]["lifetime"]["choice"]["num_parameters"]
    assert lifetime["value"] < size["value"]
    (check,) = values["learning_rate_checks"]
    assert check["best_learning_rate"] == 2e-3
    assert check["excess_loss"] == pytest.approx(1 / 0.96 - 1)


def test_plots_are_pictures_and_all_are_on_the_page(report: Path) -> None:
    pictures = sorted(report.glob("*.png"))
    names = {path.stem for path in pictures}
    assert {"loss_flops", "frontier", "isoflop", "residuals", "hold_out"} <= names
    assert {"bootstrap_exponents", "bootstrap_sizes", "downstream_rollout_psnr_5"} <= names
    for path in pictures:
        assert np.asarray(Image.open(path).convert("L")).std() > 1
    text = (report / "index.html").read_text()
    assert text.count("data:image/png;base64,") == len(pictures)


def test_the_page_needs_no_network_and_says_what_was_left_out(report: Path) -> None:
    text = (report / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert "n4_d0: has no result.json" in text
    assert "&lt;b&gt;[red]{{ 7 * 7 }}" in text and STRANGE not in text
    assert "learning rate 0.001 gives 4.2 % more loss than 0.002" in text
    assert "$" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)


def test_the_terminal_says_what_the_page_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The caveats of the methods, the budget, and the outliers by name."""
    points = grid_points(noise=0.002)
    points[12] = replace(points[12], loss=1.2 * points[12].loss)
    folder = write_sweep(tmp_path / "sweep", points)
    assert main([str(folder), "--replicates", "100"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    page = (folder / "fit" / "index.html").read_text()
    for caveat in (
        "their losses are straight lines in logarithms, without a floor, so far beyond the runs "
        "they are too low.",
        "FLOPs of training (ten times the most of a run), 10 times the most of a run.",
    ):
        assert caveat in printed and caveat in page
    assert re.search(r"stays? in the fit: n2_d2 \(\+1\d\.\d % loss\)", printed)
    assert re.search(r"stays? in the fit: n2_d2 \(\+1\d\.\d % loss\)", page)


def test_a_csv_file_with_guessed_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_points(
        tmp_path / "points.csv", ["loss", "Model Size", "hex_color", "Training FLOP"]
    )
    assert main([str(path), "--drop-highest-loss", "2", "--replicates", "100"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "column 'Model Size' was taken for N" in printed
    assert "D = C / (6 N)" in printed
    assert printed.count("among the 2 highest losses, dropped as asked for") == 2
    assert (tmp_path / "points-fit" / "index.html").is_file()


def test_mapped_columns_and_excluded_runs(tmp_path: Path) -> None:
    path = write_points(tmp_path / "points.csv", ["q", "size of it", "colour", "work"])
    out = tmp_path / "out"
    arguments = ["--columns", "N=size of it", "C=work", "loss=q", "--exclude", "line 3=a bad node"]
    assert main([str(path), *arguments, "--replicates", "100", "--out", str(out)]) == 0
    (left,) = json.loads((out / "fit.json").read_text())["left_out"]
    assert left == {"path": "line 3", "reason": "excluded by the user: a bad node"}


def test_a_refused_budget_is_an_error_and_leaves_a_report(tmp_path: Path) -> None:
    write_sweep(tmp_path, grid_points())
    with pytest.raises(SweepError, match=r"nothing can be recommended for 1e25 FLOPs: .*limit"):
        main([str(tmp_path), "--budget", "1e25", "--replicates", "100"])
    text = (tmp_path / "fit" / "index.html").read_text()
    assert "No recommendation" in text
    assert "do not act on them" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "N"], "expected KEY=VALUE"),
        (["--columns", "N=a", "N=b"], "names 'N' twice"),
        (["--imagined-steps", "1e9"], "belong together"),
        (["--tokens-per-imagined-step", "66"], "belong together"),
        (["--confidence", "2"], "confidence is 2"),
    ],
)
def test_wrong_options_are_errors(tmp_path: Path, arguments: list[str], message: str) -> None:
    path = write_points(tmp_path / "points.csv", ["loss", "N", "colour", "C"])
    with pytest.raises(TokenwmError, match=message):
        main([str(path), *arguments])


@pytest.mark.parametrize("text", ["3e15", "3000T", "3000000G"])
def test_a_budget_is_accepted_as_it_is_printed(text: str) -> None:
    assert parse("sweep fit", ["runs.csv", "--budget", text]).budget == 3e15


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "much", "T", "-2T", "infT"])
def test_a_budget_is_a_number_above_zero(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["runs.csv", "--budget", text])
    assert "--budget" in capsys.readouterr().err
