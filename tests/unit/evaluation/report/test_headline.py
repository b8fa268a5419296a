import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.gains import curve, with_gain
from tokenwm.cli.verbs.evaluate import print_summary
from tokenwm.evaluation.figures import CodebookUse, Flicker, PlantedCodes
from tokenwm.evaluation.metrics import Curve, GainCurve
from tokenwm.evaluation.outside import OutsideTraining, ValuesOutside
from tokenwm.evaluation.report.headline import headline, with_interval
from tokenwm.evaluation.report.outcomes import outcome_sentences
from tokenwm.evaluation.report.plots import make_plots
from tokenwm.evaluation.report.report import write_report
from tokenwm.evaluation.results import Evaluation


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


def test_the_headline_is_about_a_horizon_at_which_pixels_change(evaluation: Evaluation) -> None:
    assert evaluation.psnr_changed is not None
    late = replace(
        evaluation,
        action_gap_changed=curve([np.nan] * 5 + [2.25]),
        psnr_changed={
            name: replace(of_one, mean=np.where(np.arange(6) < 5, np.nan, of_one.mean))
            for name, of_one in evaluation.psnr_changed.items()
        },
    )
    told = " ".join(headline(late))
    assert "At horizon 6 (0.6 s) its PSNR is " in told
    assert "2.2 (2.0 to 2.5) dB at horizon 6 (0.6 s)" in told
    assert "nan" not in told


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


def test_a_dead_codebook_comes_first_and_in_red(tmp_path: Path, evaluation: Evaluation) -> None:
    book = CodebookUse(codebook_size=512, num_used=3, usage=3 / 512, perplexity=1.5)
    dead = replace(evaluation, codebook=book, examples=())
    assert headline(dead)[0].startswith("DEAD CODEBOOK: only 3 of 512 codes are in use.")
    text = write_report(tmp_path, dead).index.read_text()
    assert '<div class="verdict alarm"><p>DEAD CODEBOOK' in text
    few = replace(evaluation, codebook=replace(book, reconstruction=47.0), examples=())
    assert headline(few) == headline(evaluation)  # a grid of few distinct cells needs few codes
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
    assert "whole picture, all at once with 95 % confidence over 30 episodes" in text
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
        clipped_share=0.0,
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
    clipped = replace(outside, values=(replace(action, clipped_share=0.02),))
    assert (
        "by up to 2.4 of that range), 2.0 % beyond all bins;"
        in headline(replace(far, outside=clipped))[0]
    )
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
