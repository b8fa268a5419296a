import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from rich.console import Console

from tokenwm.cli.verbs.evaluate import print_summary
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.figures import CodebookUse, Flicker, PlantedCodes
from tokenwm.evaluation.metrics import Curve, GainCurve, summarize_gain
from tokenwm.evaluation.outside import OutsideTraining, ValuesOutside
from tokenwm.evaluation.report.headline import headline, table_horizons, with_interval
from tokenwm.evaluation.report.outcomes import outcome_sentences
from tokenwm.evaluation.report.page import significant_digits
from tokenwm.evaluation.report.plots import make_plots, table_ticks
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


def curve(mean: list[float], half: float = 0.5) -> GainCurve:
    """Of an interval of one horizon alone half as wide as what holds at all of them."""
    values = np.array(mean)
    return GainCurve(
        mean=values, low=values - half / 2, high=values + half / 2, simultaneous_low=values - half
    )


def with_gain(evaluation: Evaluation, gain: GainCurve, num_episodes: int = 6) -> Evaluation:
    """The evaluation, as if it had so many episodes and this gain, and less where pixels change.

    The random model's likelihood is worse than uniform; here it is not.
    """
    nll = evaluation.token_nll["uniform"]
    return replace(
        evaluation,
        token_nll={**evaluation.token_nll, "model": replace(nll, mean=nll.mean - 1)},
        psnr_gain=gain,
        psnr_changed_gain=replace(gain, mean=gain.mean - 0.1),
        horizons=summarize_gain(gain),
        episodes=(evaluation.episodes * num_episodes)[:num_episodes],
    )


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


def test_headline_of_a_good_model(evaluation: Evaluation) -> None:
    good = with_gain(evaluation, curve([-1, 0.2, 1, 2, 3, 2]))
    good = replace(good, action_gap_changed=curve([0, 1, 2, 3, 2.25, 3]))
    first, actions, whole, effective = headline(good)
    assert first.startswith(
        "Where pixels change, on 6 episodes the model beats persistence from horizon 3 to 6 (0.3 "
        "to 0.6 s) with 95 % confidence for all of these at once. At best it wins by 2.9 dB, at "
        "horizon 5 (0.5 s) of 6. At horizon 5 (0.5 s) its PSNR is "
    )
    assert good.psnr_changed is not None
    for name in ("model", "persistence", "reconstruction_anchored"):
        assert f"{good.psnr_changed[name].mean[4]:.1f} dB" in first
    assert whole.startswith(
        "Over the whole picture, on 6 episodes the model beats persistence from horizon 3 to 6 "
        "(0.3 to 0.6 s) with 95 % confidence for all of these at once. At best it wins by 3.0 dB"
    )
    for name in ("model", "persistence", "reconstruction_anchored"):
        assert f"{good.psnr[name].mean[4]:.1f} dB" in whole
    assert "effective horizon is 0: one step ahead it is not better" in effective
    assert actions == (
        "Persistence is wrong there by definition; other actions are the fairer baseline. True "
        "actions beat shuffled ones by 2.2 (2.0 to 2.5) dB at horizon 5 (0.5 s), over 6 episodes."
    )
    learned = replace(good, provenance={**good.provenance, "split": "train"})
    assert headline(learned)[2].startswith(
        "Over the whole picture, on 6 training episodes the model beats persistence"
    )
    alone = with_gain(evaluation, curve([-1, 0.2, 1, 0.2, 0.3, 0.4]), 24)
    assert headline(alone)[2].startswith(
        "Over the whole picture, on 24 episodes the model beats persistence at horizon 3 (0.3 s) "
        "with 95 % confidence. At best"
    )


def test_headline_without_a_gap_from_the_first_step(evaluation: Evaluation) -> None:
    sentences = headline(with_gain(evaluation, curve([1, 1, 1, 0, 0, 0])))
    assert "on 6 episodes the model beats persistence from horizon 1 to 3" in sentences[2]
    assert sentences[3] == (
        "Effective horizon: 3 steps (0.3 s), without a gap from the first step on."
    )


def test_headline_says_failures_plainly(evaluation: Evaluation) -> None:
    bad = with_gain(evaluation, curve([-3, -2, -1.5, -2, -3, -4]))
    bad = replace(bad, action_gap_changed=curve([0.4] * 6))  # above zero at one horizon alone
    change, actions, whole, effective = headline(bad)
    assert change.startswith(
        "Where pixels change, on 6 episodes the model does not beat persistence at any horizon up "
        "to 6: at best it is 1.6 dB worse, at horizon 3 (0.3 s)."
    )
    assert whole.startswith(
        "Over the whole picture, on 6 episodes the model does not beat persistence at any horizon "
        "up to 6: at best it is 1.5 dB worse, at horizon 3 (0.3 s)."
    )
    assert effective == "Effective horizon: 0 steps."
    assert actions.endswith(
        "True actions are not better than shuffled ones with 95 % confidence at horizon 5 (0.5 s), "
        "over 6 episodes: 0.4 (0.2 to 0.7) dB."
    )
    copy = with_gain(evaluation, curve([0.0, -0.01, -1, -1, -1, -1]))
    assert "at any horizon up to 6: at best it is as good as it, at horizon 1 " in headline(copy)[2]
    unsure = with_gain(evaluation, curve([-1, 0.1, 0.2, 0.1, 0.1, 0.1]))
    assert "does not beat persistence with confidence" in headline(unsure)[2]
    assert "better first at horizon 2" in headline(unsure)[2]


def test_headline_says_where_the_likelihood_is_worthless(evaluation: Evaluation) -> None:
    good = with_gain(evaluation, curve([1.0] * 6))
    assert "uniform" not in " ".join(headline(good))
    worse = curve([1, 2, 3, 4, 4.2, 4.4])  # ln 64 is 4.16
    found = replace(good, token_nll={**good.token_nll, "model": worse})
    assert headline(found)[-1] == (
        "The model's likelihood of the true frame is no better than that of a uniform guess at 2 "
        "of 6 horizons, the first horizon 5 (0.5 s): how sure it is means little there."
    )


def test_mistakes_and_flicker_in_words(evaluation: Evaluation) -> None:
    planted = PlantedCodes(
        num_planted=400,
        num_repaired=44,
        num_copied=350,
        num_other=6,
        num_right_unplanted=398,
        num_starts=100,
        num_episodes=25,
    )
    flicker = Flicker(noise_levels=(0, 1, 2), changed=(0.067, 0.26, 0.4), num_episodes=30)
    mistakes, flickers, *_ = outcome_sentences(
        replace(evaluation, planted=planted, flicker=flicker)
    )
    assert mistakes == (
        "Mistakes: of 400 wrong codes planted one at a time into still slots of the last observed "
        "frame (100 starts, 25 episodes), 11 % were repaired one step later, 88 % copied on, 1.5 % "
        "became another wrong code; unplanted, 100 % of these slots are right."
    )
    assert flickers.startswith(
        "Flicker: 6.7 % of the tokens change from one recorded frame to the next, 26 % under noise "
        "of ±1, 40 % under noise of ±2 of 255 levels (30 episodes)."
    )
    none = replace(planted, num_planted=0)
    assert outcome_sentences(replace(evaluation, planted=none))[0].startswith("No slot")


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


def test_a_dead_codebook_comes_first_and_in_red(tmp_path: Path, evaluation: Evaluation) -> None:
    book = CodebookUse(codebook_size=512, num_used=3, usage=3 / 512, perplexity=1.5)
    dead = replace(evaluation, codebook=book, examples=())
    assert headline(dead)[0].startswith("DEAD CODEBOOK: only 3 of 512 codes are in use.")
    text = write_report(tmp_path, dead).index.read_text()
    assert '<div class="verdict alarm"><p>DEAD CODEBOOK' in text
    assert "alarm" not in write_report(
        tmp_path, replace(evaluation, examples=())
    ).index.read_text().replace(".verdict.alarm", "")


def test_one_start_only(evaluation: Evaluation) -> None:
    alone = replace(evaluation, action_gap=None, action_gap_changed=None)
    assert "actions could not be shuffled" in headline(alone)[3]
    unknown = np.full(6, np.nan)
    single = Curve(mean=np.ones(6), low=unknown, high=unknown)
    assert with_interval(single, 2, 1) == "1.0"


@pytest.mark.parametrize("num_episodes", [2, 5])
def test_few_episodes_have_intervals_but_nothing_is_claimed(
    tmp_path: Path,
    evaluation: Evaluation,
    capsys: pytest.CaptureFixture[str],
    num_episodes: int,
) -> None:
    gain = replace(curve([1, 2, 3, 4, 5, 6]), simultaneous_low=np.full(6, np.nan))
    few = replace(with_gain(evaluation, gain, num_episodes), action_gap_changed=gain, examples=())
    change, actions, first, effective = headline(few)
    assert first.startswith(
        f"Over the whole picture, on {num_episodes} episodes the model's mean is better than "
        "persistence's first at horizon 1 (0.1 s). At best it wins by 6.0 dB, at horizon 6"
    )
    assert f"on {num_episodes} episodes the model's mean is better than persistence's" in change
    assert effective.startswith(f"{num_episodes} episodes cannot show anything with confidence")
    assert "takes 6 at least" in effective and "splits.folds" in effective
    assert actions.endswith(
        "True actions minus shuffled ones: 5.0 (4.8 to 5.2) dB at horizon 5 (0.5 s), over "
        f"{num_episodes} episodes."
    )
    print_summary(Console(width=300), few)
    printed = capsys.readouterr().out
    assert f"means over {num_episodes} episodes" in printed and "beats" not in printed
    text = write_report(tmp_path, few).index.read_text()
    assert f"no confidence from {num_episodes} episodes; it takes 6 at least" in text
    assert "with 95 % confidence" not in text
    metrics = few.to_dict()
    assert metrics["num_episodes"] == num_episodes
    assert metrics["beats_persistence"]["confident_horizons"] == []
    assert metrics["beats_persistence_changed"]["confident_horizons"] == []
    assert metrics["psnr_gain_over_persistence"]["simultaneous_low"] == [None] * 6


def test_the_number_of_episodes_stands_wherever_something_is_claimed(
    tmp_path: Path, evaluation: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    good = with_gain(evaluation, curve([1, 1, 1, 2, 3, 2]), 30)
    good = replace(good, action_gap_changed=curve([0, 1, 2, 3, 2.25, 3]), examples=())
    print_summary(Console(width=300), good)
    printed = capsys.readouterr().out
    assert re.search(r"1 +3 +5 +6\s+horizon +0.1 s +0.3 s +0.5 s +0.6 s", printed)
    assert "means over 30 episodes" in printed and "on 30 episodes the model beats" in printed
    text = write_report(tmp_path, good).index.read_text()
    assert "where pixels change, all at once with 95 % confidence over 30 episodes" in text
    assert "shuffled actions where pixels change, at horizon 5 (0.5 s), mean of 30 epis" in text
    assert "Means over 30 episodes; below each, its 95 % interval (Student" in text
    captions = {plot.name: plot.caption for plot in make_plots(good)}
    for name in ("psnr_changed", "psnr_changed_gain", "psnr", "psnr_gain", "ssim", "action_gap"):
        assert "95 % intervals over 30 episodes, each about one horizon alone" in captions[name]


def test_models_of_several_folds_are_named_as_such(evaluation: Evaluation) -> None:
    sentences = headline(replace(evaluation, num_models=5))
    assert sentences[-1].startswith("5 models were measured, each on the episodes held out from it")
    assert "not independent" in sentences[-1]


def test_data_outside_of_training_come_first_and_in_red(
    tmp_path: Path, evaluation: Evaluation
) -> None:
    assert not evaluation.outside.is_notable
    action = ValuesOutside(
        name="action",
        share=0.123,
        worst_dimension="elbow",
        worst_share=0.8,
        worst_excess=2.41,
    )
    state = replace(action, name="state", share=0.001, worst_share=0.0099)  # single extremes
    outside = OutsideTraining(
        values=(action, state), reconstruction=21.04, reconstruction_at_home=27.3
    )
    far = replace(evaluation, outside=outside, examples=())
    assert headline(far)[0] == (
        "OUTSIDE TRAINING: 12 % of the action values lie beyond the range of the training data "
        "(worst: elbow, 80 %, by up to 2.4 of that range); the tokenizer's reconstruction reaches "
        "21.0 dB, on its own val split 27.3 dB. What follows is about such data."
    )
    text = write_report(tmp_path, far).index.read_text()
    assert '<div class="verdict alarm"><p>OUTSIDE TRAINING' in text
    assert far.to_dict()["outside_training"]["values"][0]["worst_dimension"] == "elbow"
    near = replace(outside, values=(state,), reconstruction=24.31)  # 2.99 dB below
    assert not near.is_notable
    some = replace(near, values=(replace(action, share=0.004, worst_share=0.14),))
    assert headline(replace(far, outside=some))[-1] == (
        "Partly outside of what was trained on: 0.4 % of the action values lie beyond the range of "
        "the training data (worst: elbow, 14 %, by up to 2.4 of that range)."
    )
    text = write_report(tmp_path, replace(far, outside=some)).index.read_text()
    assert "Partly outside" in text and "verdict alarm" not in text
    unknown = replace(outside, values=(state,), reconstruction_at_home=None)
    assert not unknown.is_notable
    text = write_report(tmp_path, replace(far, outside=unknown)).index.read_text()
    assert "reconstructs its own val split is not known" in text and "verdict alarm" not in text


def test_one_episode_has_no_intervals_and_the_report_says_so(
    tmp_path: Path, evaluation: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = np.full(6, np.nan)
    gain = GainCurve(
        mean=np.array([-1, 0.2, 1, 2, 3, 2]), low=unknown, high=unknown, simultaneous_low=unknown
    )
    one = replace(
        with_gain(evaluation, gain, 1),
        action_gap_changed=gain,
        psnr={name: replace(c, low=unknown, high=unknown) for name, c in evaluation.psnr.items()},
        examples=(),
    )
    _, actions, first, effective = headline(one)
    assert first.startswith(
        "Over the whole picture, on 1 episode the model's mean is better than persistence's first "
        "at horizon 2 (0.2 s). At best it wins by 3.0 dB, at horizon 5 (0.5 s) of 6."
    )
    assert effective.startswith("1 episode cannot show anything with confidence")
    assert actions.endswith(
        "True actions minus shuffled ones: 3.0 dB at horizon 5 (0.5 s), over 1 episode."
    )
    worse = with_gain(one, replace(gain, mean=gain.mean - 4), 1)
    assert "the model does not beat persistence at any horizon" in headline(worse)[2]
    print_summary(Console(width=200), one)
    printed = capsys.readouterr().out
    captions = [plot.caption for plot in make_plots(one)]
    text = write_report(tmp_path, one).index.read_text()
    for shown in (printed, *captions, text):
        assert "95 %" not in shown
    assert "Figures of 1 episode, so without intervals" in text
    assert any("one episode has no interval" in caption for caption in captions)


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
