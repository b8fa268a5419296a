"""The comparison with IRIS: what it reads, how it imagines, and what it makes of the scores."""

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import tokenwm
from tests.moving_square import make_model, save_model, write_squares
from tests.small_models import shake
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.config import EvaluationConfig
from tokenwm.evaluation.evaluate import evaluate
from tokenwm.heads.readout import fit_readout
from tokenwm.imagination.starts import choose_starts, load_starts

TOOLS = Path(__file__).parents[2] / "tools"
CHECKOUT = os.environ.get("IRIS_CHECKOUT")


@pytest.fixture(scope="module")
def tools() -> Iterator[SimpleNamespace]:
    names = ("compare_iris", "iris_checkout", "iris_data", "iris_model", "iris_scores")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares_with_truth")
    write_squares(folder, {"train": (12, 9, 2), "test": (14, 14)}, task_state=True)
    return folder


def test_actions_become_the_nearest_centre(tools: SimpleNamespace, data: Path) -> None:
    reader = ShardReader(data)
    different = {
        tuple(action)
        for key in reader.keys("train")
        for action in reader.arrays(key, ["action"])["action"][:-1].tolist()
    }
    exact = tools.iris_data.ActionCodes(reader, 512)
    assert exact.num_actions == len(different) and exact.error < 1e-6
    coarse = tools.iris_data.ActionCodes(reader, 3)
    assert coarse.num_actions == 3 and coarse.describe()["root_mean_squared_distance"] > 0.1
    actions = reader.arrays("train_0", ["action"])["action"]
    centres = (coarse.centres * coarse.scale).numpy()
    off = np.linalg.norm((actions[:, None] - centres) / coarse.scale.numpy(), axis=-1)
    np.testing.assert_array_equal(coarse.encode(actions), off.argmin(1))
    assert coarse.encode(actions[None]).shape == (1, 12)


def test_segments_end_with_the_episode_and_the_last_observation_has_no_step(
    tools: SimpleNamespace, data: Path
) -> None:
    reader = ShardReader(data)
    codes = tools.iris_data.ActionCodes(reader, 4)
    recording = tools.iris_data.Recording(reader, codes)
    assert recording.length.tolist() == [11, 8, 1] and recording.first.tolist() == [0, 11, 19]
    assert recording.end.nonzero()[:, 0].tolist() == [10, 18, 19]
    frames = reader.frames("train_1")[:-1, 0]
    np.testing.assert_array_equal(recording.frames[11:19].movedim(1, -1), frames)
    rows, batch = recording.draw(200, 5, torch.Generator().manual_seed(0))
    assert batch["ends"].sum(1).max() == 1  # IRIS refuses more
    episode = torch.bucketize(rows, recording.first, right=True)
    assert (episode == episode[:, :1]).all() and set(episode[:, 0].tolist()) == {1, 2, 3}
    valid = batch["mask_padding"]
    assert valid[:, 0].all() and not valid.all()
    steps = torch.where(valid, rows - rows[:, :1], torch.arange(5))
    np.testing.assert_array_equal(steps, torch.arange(5).expand(200, 5))
    is_last = rows == (recording.first + recording.length - 1)[episode - 1]
    assert (is_last | valid).all()


class CountingModel:
    """World model whose next token is the last one of its input plus one, of windows of 4 steps."""

    def __init__(self) -> None:
        self.read: list[list[int]] = []
        self.transformer = self

    def generate_empty_keys_values(self, n: int, max_tokens: int) -> SimpleNamespace:
        self.read.append([])
        return SimpleNamespace(size=0, most=max_tokens)

    def __call__(self, tokens: Tensor, past_keys_values: Any) -> SimpleNamespace:
        past_keys_values.size += tokens.shape[1]
        assert past_keys_values.size <= past_keys_values.most
        self.read[-1] += tokens[0].tolist()
        wanted = (tokens[:, -1:] + 1) % 50
        logits = torch.nn.functional.one_hot(wanted, 50).float() * 1e3
        return SimpleNamespace(logits_observations=logits)


@pytest.mark.parametrize("sampled", [False, True])
def test_imagining_begins_anew_with_the_last_frames(tools: SimpleNamespace, sampled: bool) -> None:
    model = CountingModel()
    iris = SimpleNamespace(
        world_model=model,
        tokens_per_frame=2,
        transformer_config=SimpleNamespace(max_tokens=12),
    )
    frames = torch.tensor([[[40, 41], [42, 43]]])
    actions = torch.tensor([[10, 20, 30, 5]])
    imagine = tools.iris_model.Iris.imagine
    generator = torch.Generator().manual_seed(0) if sampled else None
    found = imagine(iris, frames, torch.tensor([[7]]), actions, generator)
    assert found.tolist() == [[[11, 12], [21, 22], [31, 32], [6, 7]]]
    # Two steps fit behind two frames in a window of 12 tokens.
    assert model.read == [
        [40, 41, 7, 42, 43, 10, 11, 12, 20, 21, 22],
        [11, 12, 20, 21, 22, 30, 31, 32, 5, 6, 7],
    ]


def test_differences_are_paired_and_the_better_way_is_found(
    tools: SimpleNamespace, data: Path
) -> None:
    reader = ShardReader(data)
    rows = choose_starts(reader, "test", num_steps=8, num_starts=3).rows
    setting = tools.iris_scores.Setting(
        reader=reader,
        split="test",
        rows=rows,
        num_context=2,
        horizon=6,
        readout=fit_readout(reader, num_steps=2)[0],
    )
    starts = load_starts(reader, rows, 2, 6, with_future_frames=True)
    truth, observed = starts.future_frames, starts.frames[:, 1]

    def off_by(levels: int) -> Tensor:
        return torch.where(truth < 128, truth + levels, truth - levels)

    pictures = {
        "iris_greedy": off_by(40),
        "iris_sampled": off_by(20),
        "iris_reconstruction": truth,
        "persistence": observed[:, None].expand_as(truth),
        "ours": off_by(10),
    }
    scores = tools.iris_scores.Scores(setting)
    for numbers in (slice(0, 4), slice(4, 6)):
        parts = {name: frames[numbers] for name, frames in pictures.items()}
        scores.add(numbers, parts, truth[numbers], observed[numbers])
    found = tools.iris_scores.summarize(scores, [1, 5])
    assert found["better"] == "iris_sampled" and found["horizons"] == [1, 5]
    for name, levels in (("ours", 10), ("iris_sampled", 20)):
        expected = -20 * np.log10(levels / 255)
        np.testing.assert_allclose(found["psnr_changed"][name]["value"], expected, rtol=1e-4)
    ahead = found["psnr_changed_ours_minus"]
    np.testing.assert_allclose(ahead["iris_sampled"]["value"], 20 * np.log10(2), rtol=1e-3)
    np.testing.assert_allclose(ahead["iris_greedy"]["low"], 20 * np.log10(4), rtol=1e-3)
    task_state = found["task_state"]
    assert task_state["units"] == {"square": "px", "square_angle": "deg"}
    medians = task_state["median"]["square"]
    assert medians["iris_reconstruction"] == medians["floor"] != medians["persistence"]
    assert set(task_state["smaller_by_ours_than"]["square"]) == {
        "iris_greedy",
        "iris_sampled",
        "persistence",
    }
    assert "block" not in found
    json.dumps(found, allow_nan=False)


def test_something_else_than_a_checkout_is_refused(tools: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkout of https"):
        tools.iris_checkout.load_checkout(tmp_path)


@pytest.fixture(scope="module")
def small_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout that IRIS_CHECKOUT names, with small sizes in its settings."""
    if CHECKOUT is None:
        pytest.skip("IRIS_CHECKOUT names no checkout of github.com/eloialonso/iris")
    folder = tmp_path_factory.mktemp("iris")
    for name in ("src", "config"):
        shutil.copytree(Path(CHECKOUT) / name, folder / name)
    coder = {"resolution": 32, "ch": 32, "z_channels": 32, "ch_mult": [1, 1, 1, 1]}
    smaller: dict[str, dict[str, Any]] = {
        "tokenizer": {"vocab_size": 16, "embed_dim": 32},
        "world_model": {"num_layers": 2, "embed_dim": 16, "max_blocks": 6},
    }
    for name, sizes in smaller.items():
        path = folder / "config" / name / "default.yaml"
        settings = yaml.safe_load(path.read_text()) | sizes
        if name == "tokenizer":
            settings["encoder"]["config"] |= coder
        path.write_text(yaml.safe_dump(settings))
    return folder


def test_what_iris_imagines_is_what_its_full_pass_finds_likeliest(
    tools: SimpleNamespace, small_checkout: Path
) -> None:
    torch.manual_seed(0)
    checkout = tools.iris_checkout.load_checkout(small_checkout)
    iris = tools.iris_model.Iris(checkout, 5, torch.device("cpu"))
    shake(iris.world_model)
    iris.world_model.eval()
    frames, taken = torch.randint(16, (2, 3, 16)), torch.randint(5, (2, 2))
    actions = torch.randint(5, (2, 3))
    found = iris.imagine(frames, taken, actions)
    everything = torch.cat([frames, found], 1)
    done = torch.cat([taken, actions, actions[:, :1]], 1)[..., None]
    with torch.no_grad():
        logits = iris.world_model(torch.cat([everything, done], 2).flatten(1)).logits_observations
    # Its loss compares these with all tokens of frames but the first.
    likeliest = logits.argmax(-1)[:, :-1]
    np.testing.assert_array_equal(likeliest[:, 3 * 16 - 1 :], found.flatten(1))
    assert len(found.unique()) > 3
    pictures = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    direct = iris.tokenizer.encode_decode(pictures / 255.0, True, True)
    np.testing.assert_allclose(iris.decode(iris.encode(pictures)), direct, atol=1e-5)


def test_the_whole_way_with_small_sizes(
    tools: SimpleNamespace,
    data: Path,
    small_checkout: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_model(tmp_path / "model", make_model())
    given = ["--iris", small_checkout, "--data", data, "--ours", model, "--seconds", 0.1]
    given += ["--tokenizer-batch", 2, "--world-model-batch", 2, "--context", 2, "--horizon", 4]
    given += ["--horizons", 1, 4, "--starts", 2]
    tools.compare_iris.main([str(value) for value in given])
    found = json.loads(capsys.readouterr().out)
    assert found["iris"]["tokenizer"]["steps"] >= 1 and found["iris"]["world_model"]["steps"] >= 1
    assert {"commitment_loss", "reconstruction_loss", "perceptual_loss", "total"} == set(
        found["iris"]["tokenizer"]["loss"]
    )
    pictures = {"iris_greedy", "iris_sampled", "iris_anchored", "iris_reconstruction"}
    pictures |= {"ours", "ours_plain", "persistence"}
    assert set(found["psnr_changed"]) == pictures
    assert found["starts"]["starts"] == 4
    config = EvaluationConfig(num_context_frames=2, imagination_horizon=4, num_starts=2)
    known = evaluate(tokenwm.load(model), data, config)
    for ours, theirs in (("ours", "model"), ("ours_plain", "model_plain")):
        expected = known.psnr_changed[theirs].mean[[0, 3]]
        np.testing.assert_allclose(found["psnr_changed"][ours]["value"], expected, atol=1e-3)
