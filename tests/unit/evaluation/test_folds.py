"""Models of several folds measured as one, and data outside of what was trained on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.moving_square import make_model, save_model, write_squares
from tokenwm.cli.main import main
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.evaluate import evaluate, evaluate_folds
from tokenwm.evaluation.folds import Fold, check_folds, has_other_splits
from tokenwm.evaluation.measure import EvaluationConfig
from tokenwm.evaluation.outside import count_outside, summarize_outside
from tokenwm.evaluation.report.headline import headline
from tokenwm.evaluation.results import Evaluation
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.tokenizer.actions import BinTokenizer, DiscreteTokenizer

CONFIG = EvaluationConfig(
    num_context_frames=3, imagination_horizon=4, num_starts=2, batch_size=8, num_examples=3
)
LENGTHS = {0: (14, 9, 12), 1: (11, 16), 2: (10, 13, 5)}


def provenance(fold: int, **changes: Any) -> dict[str, Any]:
    splits = {"val": 0.0, "test": 1 / 3, "seed": 0, "folds": 3, "fold": fold}
    return {"source": "squares", "recipe": {"name": "squares", "splits": splits, **changes}}


def trained_on(fold: int, seed: int | None = None, **options: Any) -> TokenWorldModel:
    origin = {"data_provenance": provenance(fold)}
    return make_model(seed=fold if seed is None else seed, provenance=origin, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Frames of three folds."""
    result = []
    for fold, lengths in LENGTHS.items():
        folder = tmp_path_factory.mktemp(f"fold{fold}")
        write_squares(folder, {"test": lengths}, prefix=f"part{fold}_", provenance=provenance(fold))
        result.append(folder)
    return result


@pytest.fixture(scope="module")
def folds(folders: list[Path]) -> list[Fold]:
    return [
        Fold(model=trained_on(fold), data=folder, model_folder=f"model{fold}")
        for fold, folder in enumerate(folders)
    ]


@pytest.fixture(scope="module")
def together(folds: list[Fold]) -> Evaluation:
    return evaluate_folds(folds, CONFIG)


def test_every_held_out_episode_counts_once(folds: list[Fold], together: Evaluation) -> None:
    alone = [evaluate(fold.model, fold.data, CONFIG) for fold in folds]
    assert [episode.key for episode in together.episodes] == [
        *("part0_test_0", "part0_test_1", "part0_test_2", "part1_test_0", "part1_test_1"),
        *("part2_test_0", "part2_test_1"),
    ]
    assert (together.num_models, together.can_claim, alone[0].can_claim) == (3, True, False)
    assert together.skipped == {"part2_test_2": 5}
    sizes = [len(one.episodes) for one in alone]
    for name in ("model", "persistence", "reconstruction", "shuffled"):
        expected = np.average([one.psnr[name].mean for one in alone], axis=0, weights=sizes)
        np.testing.assert_allclose(together.psnr[name].mean, expected, rtol=1e-9)
    assert together.state is not None and together.state.normalized is not None
    errors = [one.state.normalized["model"].mean for one in alone if one.state is not None]  # type: ignore[index]
    expected = np.average(errors, axis=0, weights=sizes)
    np.testing.assert_allclose(together.state.normalized["model"].mean, expected, rtol=1e-9)
    rewards = [one.reward_error["training_mean"].mean for one in alone]  # type: ignore[index]
    expected = np.average(rewards, axis=0, weights=sizes)
    assert together.reward_error is not None
    np.testing.assert_allclose(together.reward_error["training_mean"].mean, expected, rtol=1e-9)
    every = [gain for one in alone for gain in one.episodes]
    gains = np.array([item.psnr["model"] - item.psnr["persistence"] for item in every])
    half = 2.447 * gains.std(axis=0, ddof=1) / np.sqrt(7)  # Student's, 6 degrees
    np.testing.assert_allclose(
        together.psnr_gain.low, together.psnr_gain.mean - half, rtol=1e-3, atol=1e-3
    )
    assert together.codebook.usage == min(one.codebook.usage for one in alone)


def test_examples_come_from_the_model_that_did_not_see_them(
    folds: list[Fold], together: Evaluation
) -> None:
    assert [example.rank for example in together.examples] == [
        "best of 14 starts",
        "rank 7 of 14 starts",
        "worst of 14 starts",
    ]
    one = together.examples[0]
    fold = folds[int(one.key[4])]
    own = evaluate(fold.model, fold.data, replace(CONFIG, num_examples=99))
    (same,) = (e for e in own.examples if (e.key, e.first_step) == (one.key, one.first_step))
    np.testing.assert_array_equal(same.prediction, one.prediction)
    np.testing.assert_array_equal(same.truth, one.truth)


def test_the_report_names_all_models(together: Evaluation) -> None:
    assert headline(together)[-1].startswith("3 models were measured")
    metrics = together.to_dict()
    assert metrics["num_models"] == 3 and metrics["num_episodes"] == 7
    first = metrics["provenance"]
    assert first["model_folder"] == "model0"
    others = [(item["model_folder"], item["data_folder"]) for item in first["further_models"]]
    assert [model for model, _ in others] == ["model1", "model2"]
    assert len({folder for _, folder in others} | {first["data_folder"]}) == 3


def test_an_episode_held_out_twice_is_refused(folds: list[Fold]) -> None:
    twice = [folds[0], folds[1], folds[1]]
    with pytest.raises(TokenwmError, match="episode part1_test_0 is held out in both .*fold1"):
        evaluate_folds(twice, CONFIG)


def test_models_of_other_sizes_are_refused(folds: list[Fold], folders: list[Path]) -> None:
    other = Fold(model=trained_on(1, window=5), data=folders[1], model_folder="wide")
    with pytest.raises(TokenwmError, match="model0 and wide differ in sizes of the world model"):
        evaluate_folds([folds[0], other], CONFIG)


def test_a_model_that_knows_the_test_episodes_is_refused(
    folds: list[Fold], folders: list[Path]
) -> None:
    wrong = [replace(folds[0], data=folders[1]), replace(folds[1], data=folders[0])]
    with pytest.raises(TokenwmError, match="model0 was trained on another dataset than .*fold1"):
        evaluate_folds(wrong, CONFIG)


def test_datasets_of_other_recipes_are_no_folds(folds: list[Fold], tmp_path: Path) -> None:
    write_squares(
        tmp_path, {"test": (9,)}, prefix="other_", provenance=provenance(1, image_size=[32, 32])
    )
    with pytest.raises(TokenwmError, match="are not folds of one dataset"):
        evaluate_folds([folds[0], replace(folds[1], data=tmp_path)], CONFIG)
    with pytest.raises(TokenwmError, match="no model to measure"):
        evaluate_folds([], CONFIG)


@pytest.mark.parametrize(
    ("trained", "warned"),
    [
        ({"source_checksum": "a", "recipe": {"splits": {"val": 0.1, "test": 0.15}}}, True),
        ({"source_checksum": "a", "recipe": {"splits": {"val": 0.1, "test": 0.25}}}, False),
        (
            {"source_checksum": "a", "recipe": {"splits": {"val": 0.1, "test": 0.25, "fold": 1}}},
            True,
        ),
        ({"source_checksum": "b", "recipe": {"splits": {"val": 0.1, "test": 0.15}}}, False),
        ({"source_checksum": None, "recipe": {}}, False),  # a simulator
        ({}, False),
    ],
)
def test_the_same_recordings_under_other_splits_are_an_alarm(
    tmp_path: Path, trained: dict[str, Any], warned: bool
) -> None:
    splits = {"val": 0.1, "test": 0.25, "seed": 0, "recorded": True}
    now = {"source_checksum": "a", "recipe": {"splits": splits}}
    write_squares(tmp_path, {"test": (9,)}, provenance=now)
    quick = replace(CONFIG, num_examples=0, num_starts=1)
    model = make_model(provenance={"data_provenance": trained})
    found = evaluate(model, tmp_path, quick)
    assert found.has_other_splits == warned
    assert headline(found)[0].startswith("OTHER SPLITS: ") == warned


def test_what_a_parent_and_a_mixture_knew_counts_too(tmp_path: Path) -> None:
    """A fine-tuned model must not be praised for test episodes that its parent was trained on."""
    now = {"source_checksum": "a", "recipe": {"splits": {"val": 0.1, "test": 0.25}}}
    other = {"source_checksum": "a", "recipe": {"splits": {"val": 0.1, "test": 0.15}}}
    write_squares(tmp_path, {"test": (9,)}, provenance=now)
    manifest = Manifest.load(tmp_path)
    new = {"data_provenance": {"source_checksum": "tuesday", "recipe": {}}}
    for knew, warned in ((other, True), (now, False)):
        item = {"data_provenance": knew}
        for kept in ({"parent": item}, {"data_mixture": [new, item]}):
            model = make_model(provenance={**new, **kept})
            assert has_other_splits(model, manifest) == warned
    folds = [Fold(model=make_model(provenance={"data_provenance": now}), data=tmp_path)] * 2
    readers = [ShardReader(tmp_path)] * 2
    check_folds(folds, readers)
    parent = {"data_provenance": now, "parent": {"data_provenance": other}}
    folds = [folds[0], Fold(model=make_model(provenance=parent), data=tmp_path)]
    with pytest.raises(TokenwmError, match="so it may know the episodes held out there"):
        check_folds(folds, readers)


def test_evaluate_takes_models_and_their_data_in_order(
    folds: list[Fold],
    folders: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = [save_model(tmp_path / f"model{i}", fold.model) for i, fold in enumerate(folds)]
    options = ["--context", "3", "--horizon", "4", "--starts", "1", "--examples", "0"]
    data = ["--data", *map(str, folders)]
    assert main(["evaluate", *map(str, models), *data, *options]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "means over 7 episodes" in out and "on 7 episodes the model" in out
    assert "3 models were measured" in out
    metrics = json.loads((models[0] / "report_folds" / "metrics.json").read_text())
    assert metrics["num_models"] == 3
    for wrong in ([*map(str, models[:2]), *data], [*data, *map(str, models)]):
        assert main(["evaluate", *wrong, *options]) == 1
        message = " ".join(capsys.readouterr().err.split())
        assert "give MODEL … --data SHARDS …, for each model its own data" in message


def test_values_and_pictures_at_home_are_not_outside(squares: Path) -> None:
    home = {"metrics": {"val/psnr": 1.0}}
    found = evaluate(make_model(tokenizer_provenance=home), squares, CONFIG).outside
    assert not found.is_notable
    assert [(item.name, item.share) for item in found.values] == [("action", 0.0), ("state", 0.0)]
    assert found.reconstruction_at_home == 1.0


def test_values_beyond_the_bins_are_counted_by_hand(tmp_path: Path) -> None:
    """Actions go to 3; of the first dimension the bins end at 1.5, with a range of 5."""
    written = write_squares(tmp_path, {"test": (14, 20)})
    assert evaluate(make_model(), tmp_path, CONFIG).outside.values[0].share == 0.0
    model = make_model()
    model.vocabulary = replace(
        model.vocabulary,
        action=BinTokenizer(
            edges=np.array([[-3.5, -1, 0, 0.5, 1, 1.2, 1.4, 1.5], np.linspace(-3.5, 3.5, 8)]),
            names=("x", "y"),
        ),
    )
    actions = np.concatenate([arrays["action"][:-1] for arrays in written.values()])
    outside = actions[:, 0] > 1.5
    assert 0.1 < outside.mean() < 0.9
    evaluation = evaluate(model, tmp_path, CONFIG)
    found, said = evaluation.outside, headline(evaluation)
    action = found.values[0]
    assert found.is_notable and action.worst_dimension == "x"
    assert action.worst_share == pytest.approx(outside.mean())
    assert action.share == pytest.approx(outside.mean() / 2)
    assert action.worst_excess == pytest.approx((3 - 1.5) / 5)
    assert action.clipped_share == action.share  # these bins have no margin
    old = evaluation.to_dict()
    for item in old["outside_training"]["values"]:
        del item["clipped_share"]  # as in reports from before there was one
    assert Evaluation.from_dict(old).outside == found
    assert found.is_far == (outside.mean() >= 0.25)
    assert any("beyond the range of the training data (worst: x" in text for text in said)


def test_values_in_the_margin_are_outside_but_not_clipped() -> None:
    """Of five values three lie beyond [-1, 1], and one of them beyond the last bin, which ends at
    1.5."""

    class Reader:
        """A reader of one episode."""

        def arrays(self, key: str, names: list[str]) -> dict[str, Any]:
            return {names[0]: np.array([[0.9], [1.2], [-1.4], [1.0], [1.75]], np.float32)}

    model = make_model()
    bins = BinTokenizer(edges=np.linspace(-1.5, 1.5, 7)[None], margin_bins=1)
    model.vocabulary = replace(model.vocabulary, action=bins, state=bins)
    counts = count_outside(model, Reader(), ["one"])  # type: ignore[arg-type]
    _, values = summarize_outside([model], [counts], 20.0).values
    assert values.share == pytest.approx(3 / 5) and values.clipped_share == pytest.approx(1 / 5)
    assert values.worst_excess == pytest.approx(0.75 / 2)
    # A model that was fine-tuned on such values knows them, but for those that have no bin.
    model.provenance = {"value_ranges": {"state": [[-9.0], [9.0]]}}
    counts = count_outside(model, Reader(), ["one"])  # type: ignore[arg-type]
    _, values = summarize_outside([model], [counts], 20.0).values
    assert values.share == values.clipped_share == pytest.approx(1 / 5)


def test_ids_that_the_training_data_never_used_are_outside() -> None:
    class Reader:
        """A reader of one episode: two ids a step, and a last action that leads nowhere."""

        def arrays(self, key: str, names: list[str]) -> dict[str, Any]:
            return {"action": np.array([[0, 3], [1, 0], [2, 2], [9, 9]])}

    model = make_model()
    action = DiscreteTokenizer(num_values=10, num_dimensions=2, sizes=(3, 3))
    model.vocabulary = replace(model.vocabulary, action=action, state=None)
    counts = count_outside(model, Reader(), ["one"])  # type: ignore[arg-type]
    (values,) = summarize_outside([model], [counts], 20.0).values
    assert values.worst_dimension == "dimension 1" and values.worst_excess == 0.0
    assert values.share == pytest.approx(1 / 6)
    assert values.worst_share == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("metrics", "known"),
    [
        ({"val/psnr": 60.0}, 60.0),
        ({"val/psnr": "60"}, None),
        ({"val/psnr": float("nan")}, None),
        ({"train/psnr": 60.0}, None),
        (None, None),
    ],
)
def test_the_figure_at_home_comes_from_the_tokenizer_s_provenance(
    squares: Path, metrics: Any, known: float | None
) -> None:
    origin = {} if metrics is None else {"metrics": metrics}
    found = evaluate(make_model(tokenizer_provenance=origin), squares, CONFIG).outside
    assert found.reconstruction_at_home == known
    assert found.has_other_pictures == (known is not None)  # a random tokenizer is far from 60 dB
