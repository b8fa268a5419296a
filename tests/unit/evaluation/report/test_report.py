import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image

from tests.gains import curve, with_gain
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.report.headline import headline, table_horizons
from tokenwm.evaluation.report.page import significant_digits
from tokenwm.evaluation.report.plots import table_ticks
from tokenwm.evaluation.report.renew import renew_report
from tokenwm.evaluation.report.report import strip_columns, write_report
from tokenwm.evaluation.report.training_curves import plot_training, read_losses
from tokenwm.evaluation.results import SINCE_3, Evaluation
from tokenwm.pages.words import seconds

CSV = """epoch,step,train/loss,train/mfu,val/loss,val/state_nll
0,9,2.0,0.1,,
0,9,,,1.5,0.25
0,19,1.0,0.2,,
0,19,,,nan,0.5
"""


class Page(HTMLParser):
    """Tags and pictures of a page; complains about tags that are not closed."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert self.open_tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, evaluation: Evaluation) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "metrics.csv").write_text(CSV)
    curves = {"world model": folder / "metrics.csv"}
    assert write_report(folder / "report", evaluation, curves).index.is_file()
    return folder / "report"


def test_page_needs_nothing_beside_it(report: Path) -> None:
    text = (report / "index.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert len(page.sources) == page.tags.count("img") == 2 * 4 + 10 + 1
    for source in page.sources:
        header, _, body = source.partition(",")
        assert header in ("data:image/png;base64", "data:image/gif;base64")
        assert base64.b64decode(body)[:4] in (b"\x89PNG", b"GIF8")


def test_page_says_what_was_found(report: Path, evaluation: Evaluation) -> None:
    text = (report / "index.html").read_text()
    for sentence in headline(evaluation):
        assert str(escape(sentence)) in text
    for example in evaluation.examples:
        assert f"{example.rank}: episode {example.key} from step {example.first_step}" in text
    assert "Too short for context and horizon, so not measured: test_3 (6 steps)." in text
    assert f"{evaluation.psnr['persistence'].mean[2]:.1f}<small>" in text
    assert "Training: world model" in text


def test_a_page_is_renewed_from_its_files(
    report: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    again = shutil.copytree(report, tmp_path / "report")
    (again / "index.html").write_text("an older page")
    assert renew_report(again).read_text() == (report / "index.html").read_text()
    for path in (report / "plots").iterdir():
        assert (again / "plots" / path.name).read_bytes() == path.read_bytes()
    metrics = json.loads((again / "metrics.json").read_text())
    assert Evaluation.from_dict(metrics).to_dict() == {**metrics, "examples": []}
    # One of an older version names no examples; its strips are shown all the same.
    del metrics["examples"]
    (again / "metrics.json").write_text(json.dumps(metrics))
    text = renew_report(again).read_text()
    for example in evaluation.examples:
        assert f"<figcaption>episode {example.key} from step {example.first_step}<" in text


def test_what_is_no_report_is_not_renewed(report: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenwmError, match="cannot be renewed: .*No such file.*tokenwm evaluate"):
        renew_report(tmp_path)
    metrics = json.loads((report / "metrics.json").read_text())
    for bad in ({"metrics_version": 1}, {"psnr": 3}, {"provenance": {}}, {"examples": [{}]}, []):
        (tmp_path / "metrics.json").write_text(json.dumps({**metrics, **bad} if bad else bad))
        with pytest.raises(TokenwmError, match="cannot be renewed"):
            renew_report(tmp_path)


def test_a_renewed_page_shows_no_files_from_elsewhere(report: Path, tmp_path: Path) -> None:
    again = shutil.copytree(report, tmp_path / "report")
    for name, kind in (("strips", "png"), ("films", "gif")):
        shutil.copy(next((report / name).iterdir()), tmp_path / f"secret_0000.{kind}")
        (again / name / f"linked_0000.{kind}").symlink_to(tmp_path / f"secret_0000.{kind}")
    metrics = json.loads((again / "metrics.json").read_text())
    metrics["examples"] = [
        {"key": key, "first_step": 0, "rank": "best"} for key in ("../../secret", "linked")
    ]
    (again / "metrics.json").write_text(json.dumps(metrics))
    assert "None were kept." in renew_report(again).read_text()


def test_every_part_is_a_file_of_its_own(report: Path, evaluation: Evaluation) -> None:
    assert len(list((report / "strips").glob("*.png"))) == len(evaluation.examples) == 4
    plots = {path.stem for path in (report / "plots").glob("*.png")}
    assert plots == {
        "psnr_changed",
        "psnr_changed_gain",
        "psnr",
        "psnr_gain",
        "ssim",
        "action_gap",
        "token_accuracy",
        "token_nll",
        "state_error",
        "reward_error",
        "training_world_model",
    }
    for path in (report / "films").glob("*.gif"):
        with Image.open(path) as film:
            assert film.n_frames == 3 + 6  # type: ignore[attr-defined]
    with Image.open(next((report / "strips").glob("*.png"))) as strip:
        # 32 pixels enlarged 4 times: 4 rows, one observed and six imagined columns.
        assert strip.height > 4 * 128 and strip.width > 7 * 128


def test_metrics_json_is_complete_and_has_no_nan(report: Path, evaluation: Evaluation) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    metrics = json.loads((report / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics == json.loads(json.dumps(evaluation.to_dict(), default=str))
    assert metrics["psnr"]["model"]["mean"] == evaluation.psnr["model"].mean.tolist()
    assert metrics["horizons"] == [1, 2, 3, 4, 5, 6]
    assert metrics["provenance"]["evaluation"]["num_starts"] == 2


def test_every_key_of_metrics_json_is_documented(evaluation: Evaluation) -> None:
    text = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text()
    metrics = evaluation.to_dict()
    parts = ("psnr", "codebook", "beats_persistence", "changed", "planted", "flicker")
    for name in [*metrics, *(name for part in parts for name in metrics[part])]:
        assert f"`{name}`" in text, name


def test_names_from_outside_cannot_break_the_page(tmp_path: Path, evaluation: Evaluation) -> None:
    provenance = {**evaluation.provenance, "data_name": "<script>alert(1)</script>"}
    files = write_report(tmp_path, replace(evaluation, provenance=provenance, examples=()))
    assert "script" not in Page(files.index.read_text()).tags


def test_report_where_no_folder_can_be(tmp_path: Path, evaluation: Evaluation) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenwmError, match="cannot be made"):
        write_report(tmp_path / "file" / "report", evaluation)


def test_a_report_of_version_2_is_renewed_without_what_is_new(
    report: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    again = shutil.copytree(report, tmp_path / "report")
    metrics = json.loads((again / "metrics.json").read_text()) | {"metrics_version": 2}
    new = ("horizon_seconds", "beats_persistence_changed", "beats_uniform", *SINCE_3)
    metrics = {key: value for key, value in metrics.items() if key not in new}
    del metrics["token_nll"]["uniform"]
    for episode in metrics["episodes"]:
        del episode["psnr_changed"]
    (again / "metrics.json").write_text(json.dumps(metrics))
    text = renew_report(again).read_text()
    assert (
        Evaluation.from_dict(metrics).psnr_gain.mean.tolist() == evaluation.psnr_gain.mean.tolist()
    )
    assert "Where pixels change" not in text and "Mistakes" not in text
    first, effective, actions = headline(Evaluation.from_dict(metrics))
    assert first.startswith("Over the whole picture, on 3 episodes")
    assert actions.startswith("True actions minus shuffled ones")


def test_horizons_of_tables_and_ticks(evaluation: Evaluation) -> None:
    assert table_horizons(evaluation) == [1, 3, 5, 6]
    long = with_gain(evaluation, curve([0.0] * 20))
    assert table_horizons(long) == [1, 3, 5, 10, 15, 20]
    assert table_ticks(20) == [1, 5, 10, 15, 20]
    assert table_ticks(6) == [1, 2, 3, 4, 5, 6]
    assert table_ticks(1) == [1]
    assert len(table_ticks(100_000)) < 8
    assert strip_columns(20) == [1, 4, 6, 9, 12, 15, 17, 20]
    assert strip_columns(3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1 / 30, "0.033 s"), (0.5, "0.5 s"), (2.0, "2 s"), (9.96, "10 s"), (100.4, "100 s")],
    ids=str,
)
def test_seconds_in_words(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("largest", "digits"), [(123.0, 0), (6.8, 2), (0.05, 4), (0.0, 3), (1.0, 2)]
)
def test_three_significant_digits(largest: float, digits: int) -> None:
    assert significant_digits({"a": curve([0.0, -largest]), "b": curve([0.0])}) == digits


def test_losses_are_read_without_gaps_and_nan(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(CSV)
    assert read_losses(tmp_path / "metrics.csv") == {
        "train/loss": [(9, 2.0), (19, 1.0)],
        "val/loss": [(9, 1.5)],
        "val/state_nll": [(9, 0.25), (19, 0.5)],
    }


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step,loss\n1,much\n", "step,loss\n,2\n"])
def test_curves_that_are_none_do_not_cost_the_report(
    tmp_path: Path, evaluation: Evaluation, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(TokenwmError, match="cannot be read as training curves"):
        plot_training("run", path)
    write_report(tmp_path / "report", replace(evaluation, examples=()), {"run": path})
    assert "no training curves of run" in caplog.text


def test_a_run_without_losses_yet_has_no_plot(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,lr\n1,0.1\n")
    assert plot_training("run", tmp_path / "metrics.csv") is None
    (tmp_path / "metrics.csv").write_text("")
    assert plot_training("run", tmp_path / "metrics.csv") is None
