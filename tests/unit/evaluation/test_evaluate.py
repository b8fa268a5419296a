import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.moving_square import (
    MEAN_REWARD,
    STATE_STD,
    OracleModel,
    make_model,
    write_squares,
)
from tests.small_models import teacher_forced
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.batch import BatchMeasurement
from tokenwm.evaluation.evaluate import evaluate
from tokenwm.evaluation.measure import EvaluationConfig
from tokenwm.evaluation.report.headline import headline
from tokenwm.evaluation.report.report import write_report
from tokenwm.evaluation.report.tiles import tiles
from tokenwm.evaluation.results import Evaluation
from tokenwm.evaluation.scores import RowScores
from tokenwm.evaluation.starts import shuffled_rows
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import Start, choose_starts, load_starts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.sequence.tokens import Tokens
from tokenwm.tokenizer.perceptual import ALEXNET

CONTEXT, HORIZON = 3, 6
Arrays = dict[str, NDArray[Any]]


def chosen_starts(folder: Path) -> tuple[Start, ...]:
    starts = choose_starts(ShardReader(folder), "test", num_steps=CONTEXT + HORIZON, num_starts=2)
    return starts.rows


def windows(folder: Path) -> Iterator[tuple[str, Arrays]]:
    """What was recorded at every start, read as simply as possible."""
    reader = ShardReader(folder)
    for row in chosen_starts(folder):
        stop = row.first_step + CONTEXT + HORIZON
        yield row.key, reader.arrays(row.key, None, row.first_step, stop)


def mean_over_episodes(folder: Path, score: list[NDArray[np.float64]]) -> dict[str, Any]:
    groups: dict[str, list[NDArray[np.float64]]] = {}
    for (key, _), value in zip(windows(folder), score, strict=True):
        groups.setdefault(key, []).append(value)
    return {key: np.mean(values, axis=0) for key, values in groups.items()}


def imagine(
    model: TokenWorldModel, folder: Path, actions: list[NDArray[Any]] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame tokens that are imagined from every start, and the true ones; ``(rows, H, K)``."""
    imagined, truth = [], []
    for number, (_, window) in enumerate(windows(folder)):
        context = model.context(
            window["frames.top"][None, :CONTEXT, None],
            window["action"][None, : CONTEXT - 1],
            window["state"][None, :CONTEXT],
        )
        own = window["action"][CONTEXT - 1 : CONTEXT + HORIZON - 1]
        rollout = model.imagine(
            context,
            (own if actions is None else actions[number])[None],
            sampling=SamplingConfig(temperature=0.0),
            noise_streams=torch.tensor([number]),
        )
        imagined.append(rollout.frame_tokens[0])
        frames = torch.from_numpy(window["frames.top"][CONTEXT:, None])
        truth.append(model.tokenizer.encode_frames(frames))
    return torch.stack(imagined), torch.stack(truth)


def test_persistence_by_hand(evaluation: Evaluation, squares: Path) -> None:
    mse = []
    for _, window in windows(squares):
        frames = window["frames.top"].astype(np.float64) / 255.0
        difference = frames[CONTEXT:] - frames[CONTEXT - 1]
        mse.append((difference**2).mean(axis=(1, 2, 3)))
    by_episode = mean_over_episodes(squares, mse)
    psnr = {key: -10 * np.log10(np.maximum(value, 1e-6)) for key, value in by_episode.items()}
    expected = np.mean(list(psnr.values()), axis=0)
    np.testing.assert_allclose(evaluation.psnr["persistence"].mean, expected, rtol=1e-5)
    for episode in evaluation.episodes:
        np.testing.assert_allclose(episode.psnr["persistence"], psnr[episode.key], rtol=1e-5)
    pooled = -10 * np.log10(np.mean(mse, axis=0))
    np.testing.assert_allclose(evaluation.psnr_pooled["persistence"], pooled, rtol=1e-5)
    gain = evaluation.psnr["model"].mean - expected
    np.testing.assert_allclose(evaluation.psnr_gain.mean, gain, rtol=1e-5)


def test_persistence_on_changed_pixels_by_hand(evaluation: Evaluation, squares: Path) -> None:
    """In some starts the square stands still at first; they count for nothing there."""
    mse, share = [], []
    for _, window in windows(squares):
        frames = window["frames.top"].astype(np.int64)
        difference = np.abs(frames[CONTEXT:] - frames[CONTEXT - 1])
        changed = difference.max(-1) > 10
        square = ((difference / 255) ** 2).mean(-1)
        count = changed.sum(axis=(1, 2))
        with np.errstate(invalid="ignore"):
            mse.append((square * changed).sum(axis=(1, 2)) / count)
        share.append(changed.mean(axis=(1, 2)))
    keys = [key for key, _ in windows(squares)]
    groups = [[row for row, key in enumerate(keys) if key == name] for name in dict.fromkeys(keys)]
    psnr = np.full((len(groups), HORIZON), np.nan)
    for index, rows in enumerate(groups):
        for horizon in range(HORIZON):
            known = [mse[row][horizon] for row in rows if not np.isnan(mse[row][horizon])]
            if known:
                psnr[index, horizon] = -10 * np.log10(np.mean(known))
    assert evaluation.changed is not None and evaluation.psnr_changed is not None
    assert evaluation.changed.threshold == 10
    some = (np.array(share) > 0).sum(axis=0)
    assert evaluation.changed.num_starts == tuple(some)
    assert evaluation.changed.num_episodes == tuple((~np.isnan(psnr)).sum(axis=0))
    assert min(some) < len(keys), "no start without change: the test shows nothing of it"
    np.testing.assert_allclose(evaluation.changed.share, np.mean(share, axis=0), rtol=1e-5)
    found = evaluation.psnr_changed["persistence"].mean
    np.testing.assert_allclose(found, np.nanmean(psnr, axis=0), rtol=1e-5)
    for episode, expected in zip(evaluation.episodes, psnr, strict=True):
        assert episode.psnr_changed is not None
        np.testing.assert_allclose(episode.psnr_changed["persistence"], expected, rtol=1e-5)


def test_the_uniform_guess_and_the_gain_over_it(evaluation: Evaluation) -> None:
    uniform, model = evaluation.token_nll["uniform"], evaluation.token_nll["model"]
    np.testing.assert_allclose(uniform.mean, np.log(64))
    assert evaluation.nll_gain is not None
    np.testing.assert_allclose(evaluation.nll_gain.mean, np.log(64) - model.mean)
    metrics = evaluation.to_dict()
    assert metrics["beats_uniform"]["confident_horizons"] == []  # three episodes
    assert metrics["horizon_seconds"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_planted_codes_and_flicker_are_counted(evaluation: Evaluation) -> None:
    planted, flicker = evaluation.planted, evaluation.flicker
    assert planted is not None and flicker is not None
    assert planted.num_planted == 6 * 2 and (planted.num_starts, planted.num_episodes) == (6, 3)
    outcomes = (planted.num_repaired, planted.num_copied, planted.num_other)
    assert sum(outcomes) == planted.num_planted
    assert planted.repair_rate == planted.num_repaired / 12
    assert (flicker.noise_levels, flicker.num_episodes) == ((0, 1, 2), 3)
    assert evaluation.lpips is None


def test_what_was_measured_is_recorded(evaluation: Evaluation, squares: Path) -> None:
    assert [(e.key, e.first_steps) for e in evaluation.episodes] == [
        ("test_0", (0, 5)),
        ("test_1", (0, 11)),
        ("test_2", (0, 2)),
    ]
    assert (evaluation.num_starts, evaluation.num_horizons) == (6, HORIZON)
    assert evaluation.skipped == {"test_3": 6}
    provenance = evaluation.provenance
    assert provenance["split"] == "test"
    assert provenance["data_folder"] == str(squares)
    assert provenance["evaluation"]["sampling"]["temperature"] == 0.0
    assert provenance["versions"]["torch"] == torch.__version__


def test_tokens_of_the_model_are_those_it_imagines(
    evaluation: Evaluation, model: TokenWorldModel, squares: Path
) -> None:
    """Also past the window of 6 steps, and although true frames are scored in between."""
    imagined, truth = imagine(model, squares)
    assert (imagined != truth).any() and len(set(imagined.flatten().tolist())) > 8
    right = [row.numpy() for row in (imagined == truth).double().mean(-1)]
    expected = np.mean(list(mean_over_episodes(squares, right).values()), axis=0)
    np.testing.assert_allclose(evaluation.token_accuracy["model"].mean, expected, atol=1e-6)


def test_shuffled_actions_are_those_of_another_start(
    evaluation: Evaluation, model: TokenWorldModel, squares: Path
) -> None:
    donors = shuffled_rows([row.key for row in chosen_starts(squares)], seed=0)
    assert donors is not None
    futures = [window["action"][CONTEXT - 1 : -1] for _, window in windows(squares)]
    imagined, truth = imagine(model, squares, [futures[donor] for donor in donors])
    right = [row.numpy() for row in (imagined == truth).double().mean(-1)]
    expected = np.mean(list(mean_over_episodes(squares, right).values()), axis=0)
    np.testing.assert_allclose(evaluation.token_accuracy["shuffled"].mean, expected, atol=1e-6)
    assert not torch.equal(imagined, imagine(model, squares)[0])


def test_surprise_at_the_first_step_equals_the_teacher_forced_loss(
    evaluation: Evaluation, model: TokenWorldModel, squares: Path
) -> None:
    vocabulary = model.vocabulary
    assert vocabulary.state is not None
    nll = []
    for _, window in windows(squares):
        part = slice(CONTEXT + 1)
        tokens = Tokens(
            model.tokenizer.encode_frames(torch.from_numpy(window["frames.top"][part, None]))[None],
            torch.from_numpy(vocabulary.state.encode(window["state"][part]).astype(int))[None],
            torch.from_numpy(vocabulary.action.encode(window["action"][part]).astype(int))[None],
        )
        with torch.no_grad():
            logits = teacher_forced(model.world_model, tokens)[0, -1]
        loss = torch.nn.functional.cross_entropy(logits, tokens.frame[0, -1])
        nll.append(np.array(float(loss)))
    expected = np.mean(list(mean_over_episodes(squares, nll).values()))
    assert evaluation.token_nll["model"].mean[0] == pytest.approx(expected, rel=1e-4)


def test_persistence_of_tokens_by_hand(
    evaluation: Evaluation, model: TokenWorldModel, squares: Path
) -> None:
    copied = []
    for _, window in windows(squares):
        frames = torch.from_numpy(window["frames.top"][:, None])
        tokens = model.tokenizer.encode_frames(frames)
        copied.append((tokens[CONTEXT:] == tokens[CONTEXT - 1]).double().mean(-1).numpy())
    share = np.mean(list(mean_over_episodes(squares, copied).values()), axis=0)
    np.testing.assert_allclose(evaluation.token_accuracy["persistence"].mean, share, atol=1e-6)
    # Two starts in each episode, so the mean over episodes is that over rows and the cost is
    # the entropy of copying.
    cost = -share * np.log(share) - (1 - share) * np.log((1 - share) / 63)
    np.testing.assert_allclose(evaluation.token_nll["persistence"].mean, cost, rtol=1e-5)


def test_true_tokens_go_on_from_those_of_the_context(squares: Path) -> None:
    model = make_model(code_margin=1.5)
    rows = chosen_starts(squares)
    batch = load_starts(ShardReader(squares), rows, CONTEXT, HORIZON, with_future_frames=True)
    config = EvaluationConfig(num_context_frames=CONTEXT, imagination_horizon=HORIZON)
    scores = RowScores.empty(len(rows), HORIZON, state_dim=2, has_reward=True, has_lpips=False)
    measured = BatchMeasurement(model, batch, np.arange(len(rows)), config, scores)
    expected = model.tokenizer.encode_sequence(batch.frames)[:, CONTEXT:]
    assert torch.equal(measured.true_tokens, expected)
    assert not torch.equal(model.tokenizer.encode_sequence(batch.future_frames), expected)


def test_state_and_reward_by_hand(
    evaluation: Evaluation, model: TokenWorldModel, squares: Path
) -> None:
    state = evaluation.state
    assert state is not None and state.normalized is not None
    assert (state.units, state.names) == ("px", ("x", "y"))
    moved, binned, reward = [], [], []
    for _, window in windows(squares):
        moved.append(np.abs(window["state"][CONTEXT:] - window["state"][CONTEXT - 1]))
        # 48 bins over 24 px: half a pixel wide, and whole pixels lie on their edges.
        binned.append(np.full((HORIZON, 2), 0.25))
        reward.append(np.abs(window["reward"][CONTEXT - 1 : -1] - MEAN_REWARD))
    per_episode = np.stack(list(mean_over_episodes(squares, moved).values()))
    expected = per_episode.mean(axis=0)
    np.testing.assert_allclose(state.per_dimension["persistence"], expected, rtol=1e-5)
    np.testing.assert_allclose(state.absolute["persistence"].mean, expected.mean(-1), rtol=1e-5)
    scaled = (expected / STATE_STD).mean(-1)
    np.testing.assert_allclose(state.normalized["persistence"].mean, scaled, rtol=1e-5)
    np.testing.assert_allclose(state.absolute["quantization"].mean, 0.25, atol=1e-5)
    assert evaluation.reward_error is not None
    baseline = np.mean(list(mean_over_episodes(squares, reward).values()), axis=0)
    np.testing.assert_allclose(evaluation.reward_error["training_mean"].mean, baseline, rtol=1e-5)


def test_an_oracle_is_as_good_as_the_tokenizer_and_no_better(
    model: TokenWorldModel, squares: Path, config: EvaluationConfig
) -> None:
    _, truth = imagine(model, squares)
    assert model.vocabulary.state is not None
    states = [model.vocabulary.state.encode(window["state"]) for _, window in windows(squares)]
    true_state = torch.from_numpy(np.stack(states)[:, CONTEXT:].astype(np.int64))
    oracle = OracleModel(model, truth, true_state, CONTEXT)
    found = evaluate(oracle, squares, config)
    for ours, ceiling in {
        "model": "reconstruction_anchored",
        "model_plain": "reconstruction",
    }.items():
        np.testing.assert_array_equal(found.psnr[ours].mean, found.psnr[ceiling].mean)
        np.testing.assert_array_equal(found.ssim[ours].mean, found.ssim[ceiling].mean)
        assert found.psnr_changed is not None and found.ssim_changed is not None
        for figures in (found.psnr_changed, found.ssim_changed):
            np.testing.assert_array_equal(figures[ours].mean, figures[ceiling].mean)
    np.testing.assert_array_equal(found.token_accuracy["model"].mean, 1.0)
    assert found.state is not None
    np.testing.assert_allclose(
        found.state.absolute["model"].mean, found.state.absolute["quantization"].mean, rtol=1e-6
    )
    # It knows the future whatever it is told to do, so actions make no difference.
    assert found.action_gap is not None
    np.testing.assert_array_equal(found.action_gap.mean, 0.0)
    assert found.planted is not None and found.planted.repair_rate == 1.0
    assert (found.psnr["model"].mean != found.psnr["model_plain"].mean).any()


def test_figures_do_not_depend_on_the_batch_size(
    evaluation: Evaluation, model: TokenWorldModel, squares: Path, config: EvaluationConfig
) -> None:
    calls = []
    alone = evaluate(
        model,
        squares,
        replace(config, batch_size=1),
        progress=lambda done, total, message: calls.append((done, total)),
    )
    expected, got = evaluation.to_dict(), alone.to_dict()
    assert got["planted"] == expected["planted"] and got["flicker"] == expected["flicker"]
    names = ("psnr", "ssim", "token_accuracy", "token_nll", "state_error", "reward_error")
    for name in (*names, "psnr_changed", "ssim_changed", "psnr_changed_gain_over_persistence"):
        for curve, values in flat(expected[name]).items():
            np.testing.assert_allclose(flat(got[name])[curve], values, atol=1e-4, err_msg=curve)
    # Two further starts before ends (1 step and in test_3, with 3 of context, 3 steps), see below.
    total = 6 * 2 * HORIZON + 3 * 1 + 1 + 3
    assert calls == [(done, total) for done in range(1, total + 1)]
    assert alone.speed.batch_size == 1 and alone.speed.milliseconds_per_step > 0
    assert got["speed"]["tokens_per_pass"] == expected["speed"]["tokens_per_pass"]
    assert 0.5 < got["speed"]["tokens_per_pass"] <= model.vocabulary.tokens_per_frame


def flat(values: Any, path: str = "") -> dict[str, list[float]]:
    if isinstance(values, dict):
        return {
            k: v for name, item in values.items() for k, v in flat(item, f"{path}.{name}").items()
        }
    return {path: values} if values and isinstance(values[0], float) else {}


def test_sampled_futures_follow_the_seed(
    model: TokenWorldModel, squares: Path, config: EvaluationConfig
) -> None:
    sampled = replace(config, sampling=SamplingConfig(temperature=1.0), num_examples=0)
    first, again = evaluate(model, squares, sampled), evaluate(model, squares, sampled)
    other = evaluate(model, squares, replace(sampled, seed=1))
    accuracy = [e.token_accuracy["model"].mean.tolist() for e in (first, again, other)]
    assert accuracy[0] == accuracy[1] != accuracy[2]


def test_nothing_beats_persistence_where_nothing_moves(
    tmp_path: Path, model: TokenWorldModel, config: EvaluationConfig
) -> None:
    write_squares(tmp_path, {"test": (12, 12, 12)}, still=True)
    found = evaluate(model, tmp_path, config)
    np.testing.assert_array_equal(found.psnr["persistence"].mean, 60.0)
    np.testing.assert_allclose(found.ssim["persistence"].mean, 1.0, atol=1e-6)
    assert (found.psnr_gain.mean < 0).all()
    assert found.horizons.effective_horizon == 0
    assert found.horizons.first_better is None
    # Of change there is nothing to be said, and that is said.
    assert found.changed is not None and found.changed.num_episodes == (0,) * HORIZON
    metrics = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert metrics["psnr_changed"]["persistence"]["mean"] == [None] * HORIZON
    assert metrics["beats_persistence_changed"]["first_better"] is None
    assert headline(found)[0].startswith("Nothing is said about change: no pixel changed by more")
    assert "–" in "".join(value for _, value, _ in tiles(found))
    write_report(tmp_path / "report", replace(found, examples=()))


@pytest.fixture
def lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the package, whose distance is the mean absolute difference.

    The empty folder that it looks for weights in.
    """
    package = ModuleType("lpips")

    class Network(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return (one - other).abs().mean(dim=(1, 2, 3), keepdim=True)

    package.LPIPS = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_lpips_is_measured_if_asked_for(
    model: TokenWorldModel, squares: Path, config: EvaluationConfig, lpips: Path
) -> None:
    wanted = replace(config, lpips=True, num_examples=0)
    with pytest.raises(TokenwmError, match="lpips needs LPIPS.*alexnet-owt-7be5be79.pth is not"):
        evaluate(model, squares, wanted)
    lpips.mkdir()
    (lpips / ALEXNET).touch()
    found = evaluate(model, squares, wanted)
    expected = []
    for _, window in windows(squares):
        frames = window["frames.top"].astype(float) / 255
        difference = np.abs(frames[CONTEXT:] - frames[CONTEXT - 1])
        expected.append(2 * difference.mean(axis=(1, 2, 3)))
    assert found.lpips is not None and set(found.lpips) == set(found.psnr)
    mean = np.mean(expected, axis=0)  # two starts in each episode
    np.testing.assert_allclose(found.lpips["persistence"].mean, mean, rtol=1e-4)


def test_lpips_without_the_package(
    model: TokenWorldModel,
    squares: Path,
    config: EvaluationConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(TokenwmError, match="lpips needs LPIPS: pip install"):
        evaluate(model, squares, replace(config, lpips=True))


def test_endings_are_counted_by_hand(squares: Path, config: EvaluationConfig) -> None:
    model = make_model()
    model.world_model.termination_head.bias.data.fill_(100.0)  # always expects the end
    score = evaluate(model, squares, config).termination
    # The last start of each of three episodes ends at its last step, where the task ends. Further
    # starts end there after one step, and in test_3 (6 steps, 3 of context) after one and three.
    assert score is not None
    num_steps = 6 * HORIZON + 3 * 1 + 1 + 3
    assert (score.num_steps, score.num_true) == (num_steps, 8)
    assert (score.num_predicted, score.num_hits) == (num_steps, 8)
    assert (score.recall, score.precision) == (1.0, 8 / num_steps)
    assert score.false_alarm_rate == 1.0
    assert score.true_per_horizon == score.hits_per_horizon == (4, 0, 1, 0, 0, 3)
    model.world_model.termination_head.bias.data.fill_(-100.0)
    score = evaluate(model, squares, config).termination
    assert score is not None
    assert (score.recall, score.precision, score.false_alarm_rate) == (0.0, None, 0.0)


def test_without_endings_there_is_no_score(
    model: TokenWorldModel, tmp_path: Path, config: EvaluationConfig
) -> None:
    write_squares(tmp_path, {"test": (12, 12)}, ends=False)
    found = evaluate(model, tmp_path, config)
    assert found.termination is None and found.to_dict()["termination"] is None


def test_further_starts_change_no_other_figure(
    model: TokenWorldModel, evaluation: Evaluation, tmp_path: Path, config: EvaluationConfig
) -> None:
    write_squares(tmp_path, {"train": (20,), "val": (16,), "test": (14, 20, 11, 6)}, ends=False)
    without = evaluate(model, tmp_path, config).to_dict()
    for name, values in evaluation.to_dict().items():
        if name not in ("termination", "speed", "provenance"):
            assert without[name] == values, name


def test_reward_errors_by_hand(squares: Path, config: EvaluationConfig) -> None:
    model = make_model()
    head = model.world_model.reward_head
    assert head is not None
    head.set_range((0.25, 0.25))  # always expects that
    found = evaluate(model, squares, config)
    truth = [window["reward"][CONTEXT - 1 : -1] for _, window in windows(squares)]
    for errors, size in ((found.reward_error, np.abs), (found.reward_squared_error, np.square)):
        by_hand = mean_over_episodes(squares, [size(reward - 0.25) for reward in truth])
        expected = np.mean(list(by_hand.values()), axis=0)
        assert errors is not None
        np.testing.assert_allclose(errors["model"].mean, expected, atol=1e-6)
        np.testing.assert_allclose(errors["training_mean"].mean, expected, atol=1e-6)


def test_rewards_that_were_never_trained_on_are_said_once(
    squares: Path, config: EvaluationConfig, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    model.vocabulary = replace(model.vocabulary, reward_range=(0.0, 0.5))
    evaluate(model, squares, config)
    message = "are from 0 to 1; those trained on were from 0 to 0.5"
    assert caplog.text.count(message) == 1


def test_one_start_in_one_episode_gives_no_intervals_and_no_shuffling(
    tmp_path: Path, model: TokenWorldModel, config: EvaluationConfig
) -> None:
    write_squares(tmp_path, {"test": (9,)})
    found = evaluate(model, tmp_path, config)
    assert found.num_starts == 1
    assert found.action_gap is None and "shuffled" not in found.psnr
    assert found.examples[0].shuffled is None
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["psnr"]["model"]["low"] == [None] * HORIZON


def test_a_model_without_state_needs_none(squares: Path, config: EvaluationConfig) -> None:
    found = evaluate(make_model(has_state=False), squares, config)
    assert found.state is None
    assert found.to_dict()["state_error"] is None


def test_two_cameras(tmp_path: Path, config: EvaluationConfig) -> None:
    cameras = ("top", "wrist")
    write_squares(tmp_path, {"test": (12, 12)}, cameras=cameras)
    found = evaluate(make_model(cameras=cameras), tmp_path, config)
    assert found.examples[0].prediction.shape == (HORIZON, 2, 32, 32, 3)
    assert found.provenance["tokens_per_frame"] == 32


@contextmanager
def collapsed(model: TokenWorldModel) -> Iterator[None]:
    """With an encoder that maps every frame to the same code."""
    parameters = list(model.tokenizer.encoder.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
        yield
        for parameter, values in zip(parameters, before, strict=True):
            parameter.copy_(values)


def test_a_dead_codebook_is_impossible_to_miss(
    squares: Path, config: EvaluationConfig, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    assert not evaluate(model, squares, config).codebook.is_dead
    assert "DEAD" not in caplog.text
    with collapsed(model):
        book = evaluate(model, squares, config).codebook
    assert (book.num_used, book.codebook_size, book.usage) == (1, 64, 1 / 64)
    assert book.perplexity == pytest.approx(1.0)
    assert book.is_dead
    assert "DEAD CODEBOOK: the frames of split test use 1 of 64 codes (1.6 %)" in caplog.text


def test_codes_are_counted_over_the_whole_split(
    evaluation: Evaluation, model: TokenWorldModel, squares: Path
) -> None:
    reader = ShardReader(squares)
    frames = np.concatenate([reader.arrays(key)["frames.top"] for key in reader.keys("test")])
    tokens = model.tokenizer.encode_frames(torch.from_numpy(frames[:, None]))
    share = tokens.flatten().bincount(minlength=64).double() / tokens.numel()
    assert evaluation.codebook.num_used == len(set(tokens.flatten().tolist()))
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    assert evaluation.codebook.perplexity == pytest.approx(float(entropy.exp()))


def test_examples_are_spread_over_the_ranking(evaluation: Evaluation) -> None:
    ranks = [example.rank for example in evaluation.examples]
    assert ranks == [
        "best of 6 starts",
        "rank 3 of 6 starts",
        "rank 4 of 6 starts",
        "worst of 6 starts",
    ]
    gains = []
    for example in evaluation.examples:
        last = example.context[-1:].astype(float)
        truth = example.truth.astype(float)
        axes = (1, 2, 3, 4)
        ours = (((example.prediction - truth) / 255) ** 2).mean(axis=axes)
        copy = (((last - truth) / 255) ** 2).mean(axis=axes)
        gains.append(float(np.mean(10 * np.log10(np.maximum(copy, 1e-6) / ours))))
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize(
    "change", [{"num_context_frames": 0}, {"imagination_horizon": 0}, {"max_episodes": 0}]
)
def test_impossible_settings_are_refused(change: dict[str, int]) -> None:
    (name,) = change
    with pytest.raises(TokenwmError, match=f"{name}=0; use at least 1"):
        EvaluationConfig(**change)  # type: ignore[arg-type]
