"""Ids or quantities: one decision over all files, the same in ``inspect`` and ``prepare``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.small_models import small_tokenizer
from tests.small_runs import run
from tests.unit.data.conftest import write_video
from tests.unit.data.readers.opening import load_all, open_source, recipe
from tokenwm.checkpoint import LoadedWorldModel, tokenizer_hash
from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.recorded.action_kind import decide
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.recipes.survey import survey
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import EpisodeError, RecipeError
from tokenwm.imagination.env import WorldModelVectorEnv
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.sequence.token_shards import make_vocabulary, tokenize_shards
from tokenwm.synthesis.imagine import random_actions
from tokenwm.tokenizer.actions import DiscreteTokenizer
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.training import WorldModelModule
from tokenwm.transformer.world_model import WorldModelConfig

ROWS = 6
SPLITS = {"val": 0.2, "test": 0}


def write(folder: Path, episodes: list[str], header: str = "action") -> None:
    """Videos, each with a table of which the rows are repeated to its length."""
    for index, rows in enumerate(episodes):
        lines = (rows.split() * ROWS)[:ROWS]
        write_video(folder / f"ep_{index}.mp4", ROWS, 10)
        (folder / f"ep_{index}.csv").write_text("\n".join([header, *lines]) + "\n")


def kind_of(folder: Path, **source: Any) -> Any:
    return open_source("videos", folder, source=source).action_kind  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_whole_numbers_in_one_of_several_files_are_no_ids(tmp_path: Path, first: int) -> None:
    """The case of the review: the first CSV happened to hold whole numbers."""
    episodes = ["0.5 1.5 2", "-0.25 1 0", "0.125 3 1"]
    episodes.insert(first, "0 1 2")
    write(tmp_path / "a", episodes)
    found = survey(tmp_path / "a")
    assert found.source.action_kind.kind == "continuous"
    assert not found.problems
    manifest = prepare(recipe("videos", tmp_path / "a", splits=SPLITS), tmp_path / "out")
    assert len(manifest.episodes) == 4 and not manifest.excluded
    assert manifest.features["action"].kind == "continuous"


@pytest.mark.parametrize(
    ("actions", "expected", "why"),
    [
        ([[0, 1, 2], [3, 0, 1]], "discrete", "whole numbers from 0 to 3"),
        ([[0, 255], [0, 1]], "discrete", "from 0 to 255"),
        ([[0, 256], [300, 0]], "continuous", "a holds 256"),
        ([[0, -1], [3, 0]], "continuous", "a holds -1"),
        ([[(0, 1), (1, 0)], [(1, 1), (0, 0)]], "discrete", "from 0 to 1"),
        ([[(0, 31), (1, 0)]], "discrete", "from 0 to 31"),
        ([[(0, 320), (240, 0)]], "continuous", "320, and ids in 2 columns side by side"),
        ([[0.0, 1.0], [1.0, 0.0]], "continuous", "a holds real numbers"),
        ([[0, 1], [1.0, 0.5]], "continuous", "b holds real numbers"),
        ([[True, False], [True, True]], "discrete", "from 0 to 1"),
    ],
)
def test_rule(actions: list[Any], expected: str, why: str) -> None:
    arrays = [np.array(values).reshape(len(values), -1) for values in actions]
    found = decide(zip("abcdef", arrays, strict=False), len(arrays))
    assert found.kind == expected
    assert why in found.why


def test_one_odd_episode_of_many_does_not_turn_a_dataset() -> None:
    games: list[NDArray[Any]] = [np.array([[0], [17]]) for _ in range(5)]
    found = decide(zip("abcdef", [*games, np.array([[9_000_000_000_000]])], strict=True), 6)
    assert found.kind == "discrete"
    assert "not in 1 of 6 (f holds 9000000000000" in found.why


def test_an_odd_episode_is_left_out_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "a", ["0 1 2", "2 0 1", "1 1 0", "0 9000000000000 1", "0 2 1"])
    found = survey(tmp_path / "a")
    assert list(found.problems) == ["ep_3"]
    assert "source.action_kind: continuous" in found.problems["ep_3"]
    manifest = prepare(recipe("videos", tmp_path / "a", splits=SPLITS), tmp_path / "out")
    assert [item.key for item in manifest.excluded] == ["ep_3"]
    assert manifest.features["action"].num_values == 3


def test_the_recipe_decides(tmp_path: Path) -> None:
    write(tmp_path, ["1,0,1 0,0,0", "0,1,1 1,1,0"], header="forward,left,jump")
    columns = {"action": ["forward", "left", "jump"]}
    ids = open_source("videos", tmp_path, source={**columns, "action_kind": "discrete"})
    numbers = open_source("videos", tmp_path, source={**columns, "action_kind": "continuous"})
    auto = open_source("videos", tmp_path, source=columns)
    for source, dtype in ((ids, "int64"), (auto, "int64"), (numbers, "float32")):
        first, second = load_all(source)
        assert first.action.dtype == second.action.dtype == dtype
        np.testing.assert_array_equal(first.action[:3], [[1, 0, 1], [0, 0, 0], [1, 0, 1]])
    assert "action_kind" not in ids.provenance().get("source_inferred", {})
    decided = auto.provenance()["source_inferred"]["action_kind"]
    assert decided == "discrete: whole numbers from 0 to 1 in every episode read"
    assert auto.describe().action_names == ("forward", "left", "jump")
    with pytest.raises(RecipeError, match="mean makes no sense for discrete"):
        load_all(
            open_source(
                "videos",
                tmp_path,
                source={**columns, "rate": 10},
                control_rate=5,
                action_aggregation="mean",
            )
        )


def test_ids_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, ["0.0 1.0", "0.5 1.0"])
    first, second = (
        source := open_source("videos", tmp_path, source={"action_kind": "discrete"})
    ).episodes()
    assert source.load(first).action.dtype == np.int64
    with pytest.raises(EpisodeError, match=r"action\[0\] is 0.5 at row 0; ids are whole numbers"):
        source.load(second)


def test_inspect_says_what_it_chose_and_compares_layouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, width in enumerate((2, 3, 2, 2, 2)):
        write_video(tmp_path / f"ep_{index}.mp4", ROWS, 10)
        names = ",".join(f"action_{i}" for i in range(width))
        rows = [",".join("01"[(i + row) % 2] for i in range(width)) for row in range(ROWS)]
        (tmp_path / f"ep_{index}.csv").write_text("\n".join([names, *rows]) + "\n")
    path = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(tmp_path), "--recipe", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "actions are discrete, ids counted from 0: whole numbers from 0 to 1" in out
    assert "would be left out: 1 episode(s)" in out and "ep_1" in out
    assert "action_kind: discrete" in path.read_text()
    manifest = prepare(load_recipe(path), tmp_path / "out")
    assert [item.key for item in manifest.excluded] == ["ep_1"]


def test_buttons_from_recordings_to_imagination(tmp_path: Path) -> None:
    """Several ids a step, all the way: recipe, shards, tokens, one training step, imagination."""
    rows = ["1,0,2,1 0,0,0,0 1,1,1,0", "0,1,1,1 1,1,0,0", "1,0,1,0 0,0,2,1", "0,0,0,1 1,1,1,0"]
    write(tmp_path / "a", rows, header="forward,left,gear,reward")
    made = recipe(
        "videos",
        tmp_path / "a",
        source={"action": ["forward", "left", "gear"]},
        splits={"val": 0.25, "test": 0},
    )
    manifest = prepare(made, tmp_path / "frames")
    feature = manifest.features["action"]
    assert (feature.kind, feature.shape, feature.num_values) == ("discrete", (3,), 3)
    assert feature.names == ("forward", "left", "gear")
    reader = ShardReader(tmp_path / "frames", verify=True)
    train = np.concatenate(
        [reader.arrays(k, ["action"])["action"][:-1] for k in reader.keys("train")]
    )
    counts = [np.bincount(column, minlength=3).tolist() for column in train.T]
    assert manifest.statistics["action"] == {"count": len(train), "counts": counts}

    tokenizer = small_tokenizer().eval()
    vocabulary = make_vocabulary(
        manifest,
        tokenizer,
        tokenizer_hash(tokenizer),
        num_action_bins=8,
        num_state_bins=8,
        method="uniform",
        use_state=False,
    )
    sizes = tuple(int(column.max()) + 1 for column in train.T)
    assert vocabulary.action == DiscreteTokenizer(num_values=3, num_dimensions=3, sizes=sizes)
    assert type(vocabulary).from_dict(vocabulary.to_dict()) == vocabulary
    tokenize_shards(tmp_path / "frames", tmp_path / "tokens", tokenizer, vocabulary)

    torch.manual_seed(0)
    transformer = TransformerConfig(dim=16, num_layers=2, num_heads=2, window=2)
    module = WorldModelModule(WorldModelConfig(transformer=transformer))
    run(tmp_path, module, tmp_path / "tokens", max_steps=1, data={"batch_size": 2})
    model = TokenWorldModel(
        LoadedWorldModel(
            tokenizer=tokenizer,
            world_model=module.world_model.eval(),
            control_rate=10.0,
            cameras=("video",),
            provenance={},
        )
    )
    frames = reader.arrays(reader.keys("val")[0], ["frames.video"])["frames.video"][:2]
    context = model.context(frames[None, :, None], train[None, :1], None)
    rollout = model.imagine(context, random_actions(model, 3, seed=0)[None])
    assert rollout.frame_tokens.shape[:2] == (1, 3)
    assert (random_actions(model, 100, seed=0).max(axis=0) == np.array(sizes) - 1).all()
    env = WorldModelVectorEnv(model, context, 2, observation="tokens")
    assert env.single_action_space.nvec.tolist() == list(sizes)  # type: ignore[attr-defined]
    env.reset(seed=0)
    env.step(env.action_space.sample())
