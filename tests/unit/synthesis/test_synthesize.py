"""Episodes that never happened: what is imagined, where trust ends, the way to other formats."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.moving_square import make_model, save_model, write_squares
from tokenwm.cli.main import main
from tokenwm.control.goals import GoalImage
from tokenwm.control.proposals import ActionSpace
from tokenwm.data.episode import Episode
from tokenwm.data.loading.mixture import MixtureItem, make_strata
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import Start, load_starts
from tokenwm.imagination.token_world_model import TokenWorldModel, load
from tokenwm.policies.learned import train_heads
from tokenwm.synthesis.actions import Luck, perturbed, planned_actions, random_actions
from tokenwm.synthesis.episodes import SynthesisConfig
from tokenwm.synthesis.synthesize import Synthesized, synthesize
from tokenwm.synthesis.synthesize import _recipe as recipe_of
from tokenwm.synthesis.trust import TrustLimits, conformal_limit, set_limits, trusted_steps

LUMA, CODEC_ERROR = (0.299, 0.587, 0.114), 2.0
"""Weights of brightness, and its mean error of 255. Colours are stored at half the resolution;
an untrained model's pictures, noise in every pixel, do not survive that."""


def made(
    model_folder: Path, squares: Path, out: Path, alpha: float = 0.0, **changes: Any
) -> Synthesized:
    values = {"num_episodes": 5, "num_context": 2, "horizon": 4, "batch_size": 2, "noise": 0.0}
    config = SynthesisConfig(model=str(model_folder), data=str(squares), **{**values, **changes})
    return synthesize(config, str(out), alpha=alpha)


@pytest.fixture(scope="module")
def imagined(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, squares: Path) -> Path:
    out = tmp_path_factory.mktemp("imagined") / "frames"
    limits = TrustLimits(surprise=3.5)  # nats, of an untrained model that knows log(64) = 4.2
    made(model_folder, squares, out, limits=limits, num_episodes=8)
    return out


def test_limits_are_those_of_split_conformal_prediction() -> None:
    scores = np.random.default_rng(0).permutation(19).astype(float)
    assert conformal_limit(scores, 0.1) == 17.0  # the 18th of 19: 2 of 20 places are beyond it
    assert conformal_limit(scores, 0.05) == 18.0
    with pytest.raises(TokenwmError, match=r"19 held-out episode\(s\) .* at least 24 are needed"):
        conformal_limit(scores, 0.04)
    generator = np.random.default_rng(1)
    beyond = [
        drawn[0] > conformal_limit(drawn[1:], 0.2) for drawn in generator.normal(size=(4000, 25))
    ]
    assert 0.16 < np.mean(beyond) <= 0.21


def rollout_of(model: TokenWorldModel, squares: Path) -> Rollout:
    starts = load_starts(ShardReader(squares), [Start(key="train_0", first_step=2)], 2, 4)
    rollout = model.imagine(starts.context(model), starts.future_actions)
    return replace(
        rollout,
        frame_nll=torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
        doubt=torch.tensor([[0.4, 0.1, 0.1, 0.5]]),
        termination_probability=torch.tensor([[0.0, 0.1, 0.2, 0.3]]),
    )


@pytest.mark.parametrize(
    ("limits", "changes", "expected"),
    [
        ({"surprise": 4.0, "doubt": 0.5}, {}, (4, "whole", "")),
        ({"surprise": 2.5, "doubt": 0.5}, {}, (2, "cut", "surprise 3 at step 3, limit 2.5")),
        ({"surprise": 3.5, "doubt": 0.3}, {}, (0, "cut", "doubt 0.4 at step 1, limit 0.3")),
        ({}, {"termination_probability": torch.tensor([[0, 0.6, 0, 0]])}, (2, "ended", "its")),
        ({"surprise": 2.5}, {"termination_probability": torch.tensor([[0, 0, 0.5, 0]])},
         (2, "cut", "surprise")),
        ({"surprise": 9.0}, {"frame_nll": torch.tensor([[1.0, torch.nan, 1, 1]])},
         (1, "cut", "surprise nan at step 2")),
        ({"doubt": 0.3}, {"doubt": None}, (4, "whole", "")),
    ],
    ids=["whole", "surprise", "doubt", "ends", "cut-before-its-end", "nan", "no-doubt"],
)  # fmt: skip
def test_an_episode_ends_where_trust_does(
    model: TokenWorldModel,
    squares: Path,
    limits: dict[str, Any],
    changes: dict[str, Any],
    expected: tuple[int, str, str],
) -> None:
    rollout = replace(rollout_of(model, squares), **changes)
    found = trusted_steps(rollout, 0, TrustLimits(**limits))
    assert (found.num_steps, found.verdict) == expected[:2]
    assert found.reason.startswith(expected[2]) and bool(found.reason) == bool(expected[2])


def test_episodes_are_what_the_model_imagines_from_recorded_steps(
    imagined: Path, squares: Path, model_folder: Path
) -> None:
    model, reader, real = (
        load(model_folder),
        ShardReader(imagined, verify=True),
        ShardReader(squares),
    )
    assert reader.manifest.features == real.manifest.features
    verdicts = set()
    for key in reader.keys("train"):
        about, arrays = reader.metadata(key), reader.arrays(key)
        assert reader.is_synthetic(key) and about["task"] == "move"
        source, step = str(about["source_episode"]), int(str(about["source_step"]))
        number, count = int(key.split("_")[1]), len(arrays["action"]) - 1
        recorded = real.arrays(source, None, step - 1, step + 5)
        starts = load_starts(real, [Start(key=source, first_step=step - 1)], 2, 4)
        rollout = model.imagine(
            starts.context(model), starts.future_actions, seed=0, noise_streams=number
        )
        frames = model.decode_frames(rollout).numpy()[0, :count, 0]
        np.testing.assert_array_equal(arrays["frames.top"][0], recorded["frames.top"][1])
        np.testing.assert_array_equal(arrays["frames.top"][1:], frames)
        np.testing.assert_array_equal(arrays["action"][:-1], recorded["action"][1 : 1 + count])
        np.testing.assert_array_equal(arrays["state"][0], recorded["state"][1])
        assert rollout.state is not None and rollout.reward is not None
        np.testing.assert_array_equal(arrays["state"][1:], rollout.state[0, :count])
        np.testing.assert_allclose(arrays["reward"][:-1], rollout.reward[0, :count], atol=1e-6)
        surprise = json.loads(str(about["surprise_by_step"]))
        np.testing.assert_allclose(surprise, rollout.frame_nll[0, :count], rtol=1e-3)
        assert max(surprise) <= 3.5
        cut, ended = (about["verdict"] == name for name in ("cut", "ended"))
        assert cut == (count < 4 and bool(rollout.frame_nll[0, count] > 3.5))
        assert ended == (rollout.termination_probability[0, count - 1] >= 0.5)
        assert about["model_sha256"] == model.provenance["weights_sha256"]
        assert (arrays["terminated"][-2], arrays["truncated"][-2]) == (ended, not ended)
        verdicts.add(about["verdict"])
    assert len(verdicts) > 1, "the limit must cut some and not all, or the test says little"
    rejected = 8 - len(reader.keys())
    assert len(reader.manifest.excluded) == rejected
    assert all("trust ends after" in item.reason for item in reader.manifest.excluded)


def test_the_loader_tells_them_from_real_ones(imagined: Path, squares: Path) -> None:
    items = [(MixtureItem(root=str(path)), ShardReader(path)) for path in (squares, imagined)]
    strata = make_strata(items, 3, ["action"], seed=0, real_fraction=0.75)
    assert [(part.is_synthetic, float(part.share)) for part in strata] == [
        (False, 0.75),
        (True, 0.25),
    ]


def test_the_same_again_and_whatever_makes_them(
    imagined: Path, model_folder: Path, squares: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def shards(folder: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted(folder.glob("*.tar"))]

    limits = TrustLimits(surprise=3.5)
    changes: dict[str, Any] = {"limits": limits, "num_episodes": 8}

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Manifest, "save", killed)
        made(model_folder, squares, tmp_path / "again", **changes)
    shard = tmp_path / "again" / "train-000000.tar"
    written = shard.stat().st_mtime_ns
    made(model_folder, squares, tmp_path / "again", **changes)
    assert shards(tmp_path / "again") == shards(imagined) != []
    made(model_folder, squares, tmp_path / "again", **changes)  # nothing is left to do
    assert shard.stat().st_mtime_ns == written  # the finished shard was kept
    with pytest.raises(TokenwmError, match="holds another dataset"):
        made(model_folder, squares, tmp_path / "again", **{**changes, "seed": 1})
    manifest = ShardReader(imagined).manifest
    recipe = manifest.provenance["recipe"]
    assert recipe["source"]["limits"]["surprise"] == 3.5 and manifest.name == "squares_imagined"


def test_an_episode_does_not_depend_on_its_company(model_folder: Path, squares: Path) -> None:
    config = SynthesisConfig(
        model=str(model_folder), data=str(squares), horizon=3, num_context=2, actions="random"
    )
    source = recipe_source(config)
    refs = source.episodes()[:3]
    together = source.load_together(refs)
    alone = pickle.loads(pickle.dumps(source)).load(refs[2])
    assert isinstance(together[2], Episode)
    np.testing.assert_array_equal(together[2].action, alone.action)
    np.testing.assert_array_equal(together[2].frames["top"], alone.frames["top"])
    assert (together[2].action != together[1].action).any()


def recipe_source(config: SynthesisConfig) -> Any:
    return recipe_of(config, ShardReader(config.data).manifest).open_source()


def test_actions_of_others_and_of_the_prior(tmp_path: Path) -> None:
    folder, data = tmp_path / "model", tmp_path / "squares"
    save_model(folder, make_model())
    write_squares(data, {"train": (12, 9, 14), "val": (16, 13, 12, 11), "test": (8,)})
    reader = ShardReader(data)
    train_heads(load(folder), reader, ("prior", "doubt"), seconds=0.1, chunk=4, reach=3)
    other = made(folder, data, tmp_path / "other", actions="other", num_episodes=3)
    reader, real = ShardReader(tmp_path / "other"), ShardReader(data)
    for key in reader.keys("train"):
        about = reader.metadata(key)
        source, _, step = str(about["actions_from"]).removeprefix("episode ").partition(":")
        assert source != about["source_episode"]
        np.testing.assert_array_equal(
            reader.arrays(key)["action"][:-1],
            real.arrays(source)["action"][int(step) : int(step) + 4],
        )
        assert len(json.loads(str(about["doubt_by_step"]))) == 4
    assert other.verdicts == {"whole": 3, "ended": 0, "cut": 0, "rejected": 0}
    policy = made(folder, data, tmp_path / "policy", alpha=0.4, actions="policy", least_steps=1)
    assert policy.limits.num_episodes == 4 and policy.limits.doubt is not None
    acted = ShardReader(tmp_path / "policy")
    actions = [acted.arrays(key)["action"][:-1] for key in acted.keys("train")]
    assert all((np.abs(action) <= 3.5).all() for action in actions)
    assert len({action.tobytes() for action in actions}) == len(actions)


def test_a_planner_comes_nearer_to_what_was_recorded_than_chance(
    model: TokenWorldModel, squares: Path
) -> None:
    rows = [Start(key="train_0", first_step=step) for step in range(3)]
    starts = load_starts(ShardReader(squares), rows, 2, 3)
    luck = Luck(seed=0, indices=(7, 8, 9))
    plans = planned_actions(model, starts, 3, luck)
    alone = load_starts(ShardReader(squares), rows[1:2], 2, 3)
    assert torch.equal(planned_actions(model, alone, 3, Luck(seed=0, indices=(8,)))[0], plans[1])
    space = ActionSpace.of(model.vocabulary)
    drawn = [random_actions(space, 3, luck.torch_generator(row, 1)) for row in range(3)]
    scores = []
    for actions in (plans, drawn):
        rollout = model.imagine(
            starts.context(model), torch.stack(actions), sampling=SamplingConfig(temperature=0.0)
        )
        goals = enumerate(starts.future_frames[:, -1])
        scores.append([GoalImage(model, goal)(rollout)[row, -1].item() for row, goal in goals])
    assert (np.array(scores[0]) > np.array(scores[1])).all()


def test_planned_episodes_say_so(model_folder: Path, squares: Path, tmp_path: Path) -> None:
    made(model_folder, squares, tmp_path / "planned", actions="planner", num_episodes=2)
    reader = ShardReader(tmp_path / "planned")
    origins = {reader.metadata(key)["actions_from"] for key in reader.keys("train")}
    assert origins == {"planner, towards step +4"}


def test_noise_on_recorded_actions(model: TokenWorldModel) -> None:
    space = ActionSpace.of(model.vocabulary)
    generator = torch.Generator().manual_seed(0)
    still = torch.zeros(20, 2)
    drawn = torch.stack([perturbed(still, space, 0.25, generator) for _ in range(400)])
    torch.testing.assert_close(drawn.std((0, 1)), 0.25 * space.std, rtol=0.1, atol=0.0)
    steps = drawn[:, 1:] - drawn[:, :-1]
    assert steps.std() < 0.8 * drawn.std()  # it hangs together; of white noise 1.4
    assert perturbed(still, space, 50.0, generator).abs().max() == 3.5
    ids = ActionSpace(
        low=torch.zeros(1, dtype=torch.int64),
        high=torch.full((1,), 4),
        mean=torch.tensor([2.0]),
        std=torch.tensor([2.0]),
        is_discrete=True,
    )
    other = perturbed(torch.full((5000, 1), 2), ids, 0.5, generator)
    assert abs((other != 2).float().mean() - 0.4) < 0.03
    assert set(random_actions(ids, 500, generator).flatten().tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_there_and_back_by_lerobot(
    imagined: Path, squares: Path, tmp_path: Path, version: str
) -> None:
    export = ["export-lerobot", "--version", version, "--crf", "0"]
    assert main([*export, str(imagined), "--out", str(tmp_path / "out")]) == 0
    assert main([*export, str(squares), "--out", str(tmp_path / "real")]) == 0
    about, real = (
        json.loads((tmp_path / name / "meta" / "info.json").read_text()) for name in ("out", "real")
    )
    for name in ("features", "fps", "robot_type", "codebase_version"):
        assert about[name] == real[name], name  # so that lerobot merges them
    first = ShardReader(imagined)
    sidecar = json.loads((tmp_path / "out" / "meta" / "tokenwm.json").read_text())
    assert not (tmp_path / "real" / "meta" / "tokenwm.json").exists()
    assert [item["key"] for item in sidecar["episodes"]] == first.keys()
    assert all(len(item["surprise_by_step"]) for item in sidecar["episodes"])
    recipe = tmp_path / "recipe.yaml"
    assert main(["inspect", str(tmp_path / "out"), "--recipe", str(recipe)]) == 0
    changes = ["splits.folds=0", "splits.val=0", "splits.test=0", "image_size=[32,32]"]
    prepare(load_recipe(recipe, [*changes, "quality.max_frozen_seconds=null"]), tmp_path / "again")
    again = ShardReader(tmp_path / "again")
    assert len(again.keys()) == len(first.keys()) > 3
    for old_key, new_key in zip(first.keys(), again.keys(), strict=True):
        assert again.is_synthetic(new_key)
        old, new = first.arrays(old_key), again.arrays(new_key)
        for name in ("action", "state", "reward", "terminated"):
            np.testing.assert_array_equal(old[name], new[name], err_msg=name)
        (camera,) = again.manifest.cameras
        difference = (old["frames.top"] - new[f"frames.{camera}"].astype(float)) @ LUMA
        assert np.abs(difference).mean() < CODEC_ERROR


@pytest.mark.parametrize("layout", ["robomimic", "npz"])
def test_there_and_back_by_arrays(
    imagined: Path, squares: Path, tmp_path: Path, layout: str
) -> None:
    """To the bit; imagined ones stay marked, and recorded ones unmarked."""
    for data, is_synthetic in ((imagined, True), (squares, False)):
        out = tmp_path / f"out_{is_synthetic}"
        argv = ["export-arrays", str(data), "--out", str(out), "--layout", layout]
        assert main(argv) == 0
        assert (out / "tokenwm.json").exists() == is_synthetic
        prepare(load_recipe(out / "recipe.yaml"), tmp_path / f"again_{is_synthetic}")
        first, again = ShardReader(data), ShardReader(tmp_path / f"again_{is_synthetic}")
        assert again.manifest.features.keys() == first.manifest.features.keys()
        keys = [key for split in ("train", "val", "test") for key in first.keys(split)]
        files = [again.metadata(key).get("file") for key in again.keys("train")]
        if layout == "npz":
            keys = sorted(keys)
            assert files == [f"{key}.npz" for key in keys]
        for old_key, new_key in zip(keys, again.keys("train"), strict=True):
            assert again.is_synthetic(new_key) == is_synthetic
            old, new = first.arrays(old_key), again.arrays(new_key)
            for name in old.keys() - {"truncated"}:  # neither format has it
                np.testing.assert_array_equal(old[name], new[name], err_msg=name)
    assert main([*argv, "--layout", "npz" if layout == "robomimic" else "robomimic"]) == 1
    assert (out / "recipe.yaml").exists()


@pytest.mark.parametrize("layout", ["robomimic", "npz"])
def test_only_an_export_is_replaced(squares: Path, tmp_path: Path, layout: str) -> None:
    argv = ["export-arrays", str(squares), "--layout", layout, "--overwrite", "--out"]
    assert main([*argv, str(tmp_path / "out")]) == 0
    assert main([*argv, str(tmp_path / "out")]) == 0
    (tmp_path / "recipes").mkdir()  # as play and control leave them
    (tmp_path / "recipes" / "recipe.yaml").write_text("name: played\n")
    (tmp_path / "mine" / "episodes").mkdir(parents=True)
    for foreign in ("recipes", "mine"):
        assert main([*argv, str(tmp_path / foreign)]) == 1
        assert list((tmp_path / foreign).iterdir())


def test_a_column_on_request(imagined: Path, squares: Path, tmp_path: Path) -> None:
    for name, data, expected in (("out", imagined, True), ("real", squares, False)):
        argv = ["export-lerobot", str(data), "--out", str(tmp_path / name), "--synthetic-column"]
        assert main(argv) == 0
        info = json.loads((tmp_path / name / "meta" / "info.json").read_text())
        assert info["features"]["synthetic"]["dtype"] == "bool"
        import pyarrow.parquet

        (path,) = (tmp_path / name / "data").glob("**/*.parquet")
        column = pyarrow.parquet.read_table(path)["synthetic"].to_pylist()
        assert set(column) == {expected}


def test_the_verb_says_how_they_came_out(
    model_folder: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["synthesize", str(model_folder), "--data", str(squares), "--out", str(tmp_path / "a")]
    argv += ["--context", "2", "--horizon", "3", "--episodes", "3", "--json"]
    assert main([*argv, "--alpha", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["limits"]["num_episodes"] == 1 and found["limits"]["surprise"] > 0
    assert sum(found["verdicts"].values()) == 3
    assert main([*argv, "--alpha", "0.1"]) == 1
    assert "1 held-out episode(s) are too few for alpha=0.1" in capsys.readouterr().err
    assert main([*argv, "--max-doubt", "1"]) == 1
    assert "tokenwm heads" in capsys.readouterr().err
    assert main([*argv, "--alpha", "0", "--horizon", "30"]) == 1
    assert "no episode of split 'train'" in capsys.readouterr().err
    assert main([*argv, "--alpha", "0", "--max-surprise", "0.0", "--overwrite"]) == 1
    assert "trust ends after 0 imagined step(s)" in capsys.readouterr().err


def test_limits_by_hand_and_those_that_are_set(tmp_path: Path) -> None:
    folder, data = tmp_path / "model", tmp_path / "squares"
    save_model(folder, make_model())
    write_squares(data, {"train": (12, 9), "val": (16, 13, 12, 11)})
    given = TrustLimits(surprise=3.5)
    plain = made(folder, data, tmp_path / "a", limits=given, alpha=0.4, num_episodes=2)
    assert plain.limits == given  # nothing is missing, so nothing is set
    for alpha in (0.0, 0.4):
        with pytest.raises(TokenwmError, match="--max-doubt 0.2: the model has no such head"):
            made(folder, data, tmp_path / "b", limits=TrustLimits(doubt=0.2), alpha=alpha)
    train_heads(load(folder), ShardReader(data), ("doubt",), seconds=0.1, chunk=4, reach=3)
    mixed = made(folder, data, tmp_path / "c", limits=given, alpha=0.4, least_steps=1).limits
    assert mixed.surprise == 3.5 and mixed.doubt is not None
    assert mixed.set_on_held_out == ("doubt",) and mixed.num_episodes == 4
    with pytest.raises(TokenwmError, match="surprise=nan; use a limit of 0 or more"):
        TrustLimits(surprise=float("nan"))


def test_held_out_episodes_have_luck_of_their_own(
    model: TokenWorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_squares(tmp_path, {"train": (8,), "val": (8, 9, 8)})
    streams: list[int] = []
    imagine = model.imagine

    def noted(*arguments: Any, **options: Any) -> Rollout:
        streams.extend(options["noise_streams"].tolist())
        return imagine(*arguments, **options)

    monkeypatch.setattr(model, "imagine", noted)
    monkeypatch.setattr("tokenwm.synthesis.trust.ROWS_AT_ONCE", 1)
    reader = ShardReader(tmp_path)
    options: dict[str, Any] = {"num_context": 2, "horizon": 4, "alpha": 0.5, "seed": 0}
    set_limits(model, reader, ["surprise"], sampling=SamplingConfig(), **options)
    assert len(set(streams)) == len(streams) == 3 and min(streams) >= 2**32


def test_imagined_robots_may_stand_still(model_folder: Path, squares: Path) -> None:
    config = SynthesisConfig(model=str(model_folder), data=str(squares))
    recipe = recipe_of(config, ShardReader(squares).manifest)
    assert recipe.quality.allow_frozen
