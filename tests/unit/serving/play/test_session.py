"""A player's world: undo, luck, two futures, what was really done, and episodes that are saved."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.moving_square import bins, make_model, write_squares
from tests.table_world import ROOM, make_table
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.serving.play import recording, session
from tokenwm.serving.play.beginnings import Beginning, Recordings, from_png, png, read_picture
from tokenwm.serving.play.controls import Controls
from tokenwm.serving.play.recording import write_played
from tokenwm.serving.play.session import Moment, Session
from tokenwm.tokenizer.actions import DiscreteTokenizer


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, {"train": (9,), "test": (14,)})
    model = make_model()
    model.approximation = Approximation(num_passes=2)  # of random weights exact takes many
    return Recordings(ShardReader(folder), model, num_context=3)


@pytest.fixture
def game(recordings: Recordings) -> Session:
    model = recordings.model
    made = Session(model, Controls(model.vocabulary), SamplingConfig(), max_steps=12)
    made.begin(recordings.begin("test_0", 4))
    return made


WAYS = [[float(x), float(y)] for x, y in np.random.default_rng(0).integers(-3, 4, (8, 2))]


def played(game: Session, steps: range) -> list[tuple[bytes, ...]]:
    for number in steps:
        game.step([WAYS[number]])
    return [moment.pictures for moment in game.history]


@pytest.mark.parametrize("most", [2, 3, 32])
def test_undo_returns_the_same_pictures_and_the_same_luck(
    game: Session, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SNAPSHOTS", most)
    first = played(game, range(8))
    assert len(set(first)) > 3 and len(game._snapshots) <= most
    game.go_back(5)
    assert [moment.pictures for moment in game.history] == first[:6]
    assert played(game, range(5, 8)) == first
    game.go_back(0)
    assert played(game, range(8)) == first
    with pytest.raises(TokenwmError, match="step 9 is not one of 0 to 8"):
        game.go_back(9)


def test_other_luck_is_another_future_and_undo_returns_to_the_luck_of_then(game: Session) -> None:
    first = played(game, range(6))
    game.go_back(3)
    game.seed = 1
    second = played(game, range(3, 6))
    assert second[:4] == first[:4] and second[4:] != first[4:]
    game.go_back(4)
    assert game.seed == 1 and played(game, range(4, 6)) == second
    game.go_back(2)
    assert game.seed == 0 and played(game, range(2, 6)) == first


def test_two_futures_have_the_same_luck_and_either_can_go_on(game: Session) -> None:
    played(game, range(2))
    game.compare()
    game.step([WAYS[2], WAYS[2]])
    same, other = game.history[-1].pictures
    assert same == other
    game.step([WAYS[3], [3.0, -3.0]])
    game.step([WAYS[4], [3.0, -3.0]])
    before = [moment.pictures for moment in game.history]
    assert before[-1][0] != before[-1][1]
    game.keep(1)
    game.step([[3.0, -3.0]])
    assert game.history[-1].rows == (1,) and game.num_rows == 1
    alone = game.history[-1].pictures
    game.go_back(4)
    assert game.num_rows == 2
    game.step([WAYS[4], [3.0, -3.0]])
    game.step([WAYS[5], [3.0, -3.0]])
    assert game.history[-1].pictures[1:] == alone


def test_what_was_really_done_is_done_until_the_episode_ends(
    game: Session, recordings: Recordings
) -> None:
    beginning = game.beginning
    assert beginning is not None and beginning.actions is not None
    for number in range(9):
        game.step(None)
        assert (game.history[-1].actions == beginning.actions[number]).all()
    with pytest.raises(TokenwmError, match="the recorded episode ends here"):
        game.step(None)
    assert recordings.frames("test_0", 14) is None
    game.step([WAYS[0]])
    game.step([WAYS[0]])
    game.step([WAYS[0]])
    with pytest.raises(TokenwmError, match="12 steps were imagined, the most"):
        game.step([WAYS[0]])


def test_a_recorded_beginning_is_that_of_the_dataset(recordings: Recordings) -> None:
    one = recordings.begin("test_0", 0)  # fewer observed steps than usual
    assert one.context.tokens.frame.shape[1] == 1 and one.step == 0
    last = recordings.begin("test_0", 13)
    assert last.actions is None and last.context.tokens.frame.shape[1] == 3
    assert last.frames.tobytes() == recordings.reader.frames("test_0", 13, 14)[0].tobytes()
    with pytest.raises(TokenwmError, match=r"step=14 of episode test_0"):
        recordings.begin("test_0", 14)


def test_a_robot_that_is_told_places_rests_where_it_is() -> None:
    table = Controls(make_table().vocabulary)
    assert table.is_table and table.points_down
    assert table.rest(np.array([7.0, 99.0])) == [7.0, ROOM]
    moves = Controls(make_model().vocabulary)
    assert not moves.is_place and moves.rest(np.array([7.0, 9.0])) == [0.0, 0.0]
    vocabulary = replace(
        make_model().vocabulary, action=DiscreteTokenizer(num_values=9, sizes=(4,))
    )
    game = Controls(vocabulary)
    assert game.is_discrete and game.action([2]).dtype == np.int64
    game.check([3.0])
    for wrong, message in (([4.0], "0 to 3"), ([0.5], "0 to 3"), ([1.0, 1.0], "has 1")):
        with pytest.raises(TokenwmError, match=message):
            game.check(wrong)


def test_pictures_of_strangers_are_read_with_care(tmp_path: Path) -> None:
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 255, (2, 12, 16, 3), dtype=np.uint8)
    assert (from_png(png(frames), 2) == frames).all()
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    wide.save(tmp_path / "wide.webp", lossless=True)
    middle = read_picture((tmp_path / "wide.webp").read_bytes(), (8, 8))
    assert (middle[:, 3:5] == (0, 0, 255)).all()  # the middle of it
    wide.save(tmp_path / "wide.gif")
    for content in ((tmp_path / "wide.gif").read_bytes(), b"GIF89a", png(frames)[:400], b""):
        with pytest.raises(TokenwmError, match="cannot be read; send a PNG, JPEG, WEBP"):
            read_picture(content, (8, 8))
    Image.new("1", (5000, 5000)).save(tmp_path / "large.png")
    with pytest.raises(TokenwmError, match="5000 × 5000 pixels, at most 16777216"):
        read_picture((tmp_path / "large.png").read_bytes(), (8, 8))


@pytest.mark.parametrize("chunk", [1, 3])
def test_an_episode_that_is_saved_is_read_again_by_prepare(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = Vocabulary(
        codebook_size=64,
        code_levels=(),
        num_cameras=2,
        grid=(2, 2),
        action=replace(bins(-3.0, 3.0, 6, 2 * chunk), units="px"),
        state=replace(bins(0.0, 9.0, 6), units="px"),
        has_reward=True,
        tokenizer_hash="none",
        actions_per_step=chunk,
    )
    model: Any = SimpleNamespace(
        vocabulary=vocabulary,
        cameras=("top", "wrist"),
        control_rate=2.0,
        tokenizer=SimpleNamespace(image_size=(16, 16)),
        folder=None,
        provenance={"weights_sha256": "abc"},
        approximation=None,
        world_model=SimpleNamespace(transformer=SimpleNamespace(dtype=torch.float32)),
    )
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 255, (5, 2, 2, 16, 16, 3), dtype=np.uint8)
    actions = draw.uniform(-3, 3, (5, 2, 2 * chunk)).astype(np.float32)
    history = [
        Moment(
            pictures=tuple(png(frame) for frame in frames[n, : 1 if n in (0, 4) else 2]),
            numbers={
                "state": [[float(n), 1.0], [float(n), 2.0]],
                "reward": [float(n), -1.0],
                "ends": [0.0, 1.0],
                "surprise": [0.1, 0.2],
                "doubt": [0.1, 0.2],
            },
            actions=actions[n] if n else None,
            rows={0: (0,), 1: (0, 0), 4: (1,)}.get(n, (0, 1)),
            seed=n,
        )
        for n in range(5)
    ]
    context: Any = None
    beginning = Beginning(context=context, frames=frames[0, 0], state=None, key="e", step=3)
    controls = Controls(vocabulary)
    assert controls.is_table and controls.action([1.0, 2.0]).tolist() == [1.0, 2.0] * chunk
    path = write_played(tmp_path, model, controls, beginning, history)
    origin = json.loads(path.with_suffix(".json").read_text())
    assert origin["synthetic"] and (origin["episode"], origin["step"]) == ("e", 3)
    assert origin["seeds"] == [1, 2, 3, 4] and origin["surprise"] == [0.2, 0.2, 0.2, 0.1]
    prepare(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "data")
    reader = ShardReader(tmp_path / "data")
    (key,) = reader.keys()
    read = reader.arrays(key)
    row = [0, 1, 1, 1, 0]  # the future that was gone on with
    at = range(5)
    assert (reader.frames(key) == frames[at, row]).all()
    assert np.allclose(read["action"][:-1], actions[at, row][1:])
    assert reader.manifest.actions_per_step == chunk and reader.manifest.control_rate == 2.0
    assert read["state"].tolist() == [[float(n), 1.0 + row[n]] for n in at]
    assert read["reward"][:-1].tolist() == [-1.0, -1.0, -1.0, 4.0]
    assert not read["terminated"].any() and reader.is_synthetic(key)
    with pytest.raises(TokenwmError, match="nothing was imagined yet"):
        write_played(tmp_path, model, controls, beginning, history[:1])
    assert origin["model_sha256"] == "abc" and origin["dtype"] == "float32"
    for _ in range(2):
        last = write_played(tmp_path, model, controls, beginning, history)
    path.unlink()  # a number is not given twice, whatever is taken away
    assert last.name == "episode_000002.npz"
    assert write_played(tmp_path, model, controls, beginning, history).name == "episode_000003.npz"
    model.control_rate = 4.0
    with pytest.raises(TokenwmError, match="is for episodes of another model or robot"):
        write_played(tmp_path, model, controls, beginning, history)
    model.control_rate = 2.0
    monkeypatch.setattr(recording, "MOST_EPISODES", 3)
    with pytest.raises(TokenwmError, match="has 3 episodes, the most"):
        write_played(tmp_path, model, controls, beginning, history)


def test_luck_of_a_state_can_be_changed() -> None:
    model = make_model()
    frames = np.zeros((1, 2, 1, 32, 32, 3), dtype=np.uint8)
    context = model.context(frames, np.zeros((1, 1, 2)), np.zeros((1, 2, 2)))
    action = np.zeros((1, 2), dtype=np.float32)
    rollouts = [
        model.step(model.start(context, seed=seed).with_seed(4), action)[1] for seed in (4, 9)
    ]
    assert torch.equal(rollouts[0].frame_tokens, rollouts[1].frame_tokens)
