"""``tokenwm heads``: from a model and frames to heads that are loaded in one line."""

import json
import math
from pathlib import Path

import pytest
import torch

import tokenwm
from tests.moving_square import make_model, save_model, write_squares
from tokenwm.cli import main as cli
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import CheckpointError, ShardError, TokenwmError
from tokenwm.policies.learned import sizes_for, train_heads

NAMES = ("prior", "distance", "doubt")


def test_all_heads_are_trained_kept_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", make_model(code_margin=0.2))
    written = write_squares(tmp_path / "frames", {"train": (12, 9, 14), "test": (10, 8)})
    verb = ["heads", str(tmp_path / "model"), "--data", str(tmp_path / "frames"), "--device", "cpu"]
    verb += ["--minutes", "0.005", "--chunk", "2", "--reach", "3", "--json"]
    assert cli.main(verb) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(NAMES)
    for name, figures in {
        "prior": {"nats", "marginal_nats", "uniform_nats", "nats_without_goal", "mode_error"},
        "distance": {"error_steps", "guess_error_steps", "far_steps"},
        "doubt": {"doubt", "shuffled_doubt", "nats", "stay_nats"},
    }.items():
        about = json.loads((tmp_path / "model" / "heads" / name / "head.json").read_text())
        assert about["provenance"] == found[name]
        assert figures <= found[name]["held_out"].keys()
        assert found[name]["steps"] == 35 and found[name]["split"] == "test"
        assert found[name]["optimizer_steps"] >= 1

    model = tokenwm.load(tmp_path / "model")
    prior, distance = tokenwm.GoalPolicy.load(model), tokenwm.Distance.load(model)
    model.doubt = tokenwm.Doubt.load(model)
    starts = tokenwm.starts(tmp_path / "frames", count=2, context=2, horizon=3)
    rollout = model.imagine(starts.context(model), starts.future_actions)
    goal = model.goal_features(written["test_0"]["frames.top"][5])
    assert goal.shape == (1, model.num_features) and goal[:, model.num_codes :].isnan().all()
    features = model.features_of(rollout).flatten(0, 1)
    assert distance(features, goal).isfinite().all()
    assert prior(features, goal, steps=2).mode().shape == (6, 2, 2)
    assert rollout.doubt is not None and rollout.doubt.shape == (2, 3)
    assert (rollout.doubt >= 0).all() and rollout.doubt.any()

    weights = tmp_path / "model" / "heads" / "prior" / "head.safetensors"
    made = weights.stat().st_mtime_ns
    assert cli.main(verb) == 0 and weights.stat().st_mtime_ns == made  # nothing to do
    assert json.loads(capsys.readouterr().out) == found
    assert cli.main([*verb, "--train", "prior", "--overwrite"]) == 0
    assert weights.stat().st_mtime_ns != made


def test_imagined_episodes_are_mixed_in_by_their_share(tmp_path: Path) -> None:
    save_model(tmp_path / "model", make_model())
    write_squares(tmp_path / "frames", {"train": (12, 9), "test": (10,)})
    write_squares(tmp_path / "more", {"train": (20, 20, 20), "test": (10,)}, synthetic=True)
    model, frames = tokenwm.load(tmp_path / "model"), ShardReader(tmp_path / "frames")
    more = ShardReader(tmp_path / "more")
    given = {"names": ["prior"], "chunk": 2, "reach": 3, "seconds": 60.0}
    found = train_heads(model, frames, mix=[more], real_fraction=0.5, epochs=0.1, **given)
    about = found["prior"]
    assert about["steps"] == 21 + 60 and about["optimizer_steps"] == 50
    assert about["mixture"]["real_fraction"] == 0.5
    assert len(about["mixture"]["manifests_sha256"]) == 1
    again = train_heads(model, frames, mix=[more], real_fraction=0.5, epochs=0.1, **given)
    assert again == found
    alone = train_heads(model, frames, epochs=0.1, **given)["prior"]
    assert alone["steps"] == 21 and alone["mixture"] is None
    with pytest.raises(ShardError, match="no synthetic episodes"):
        train_heads(model, frames, real_fraction=0.5, epochs=0.1, **given)
    with pytest.raises(TokenwmError, match="epochs=0.0; use a finite number above zero"):
        train_heads(model, frames, epochs=0.0, **given)


def test_what_cannot_be_trained_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_squares(tmp_path / "frames", {"test": (10,)})
    reader, model = ShardReader(tmp_path / "frames"), make_model()
    with pytest.raises(CheckpointError, match="kept beside their model"):
        train_heads(model, reader)
    with pytest.raises(TokenwmError, match="heads are 'value'; choose of prior, distance, doubt"):
        train_heads(model, reader, ["value"])
    save_model(tmp_path / "model", model)
    with pytest.raises(TokenwmError, match="no episode of at least 2 steps in split 'train'"):
        train_heads(tokenwm.load(tmp_path / "model"), reader)
    with pytest.raises(CheckpointError, match="`tokenwm heads` trains prior, distance and doubt"):
        tokenwm.Distance.load(tokenwm.load(tmp_path / "model"))
    argv = ["heads", str(tmp_path / "model"), "--data", str(tmp_path / "frames"), "--minutes", "0"]
    with pytest.raises(SystemExit):
        cli.main(argv)
    assert "--minutes: 0 is not a finite number above zero" in capsys.readouterr().err
    with pytest.raises(TokenwmError, match="seconds=inf; use a finite number above zero"):
        train_heads(model, reader, seconds=math.inf)
    assert sizes_for(model, None, None) == (25, 50)  # 10 Hz
    with pytest.raises(TokenwmError, match="chunk=0"):
        sizes_for(model, 0, None)


def test_features_of_a_rollout_are_those_of_the_states_on_the_way() -> None:
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 2, 1, 32, 32, 3), generator=generator, dtype=torch.uint8)
    context = model.context(frames, torch.zeros(2, 1, 2), torch.rand(2, 2, 2))
    actions = torch.rand(2, 4, 2, generator=generator)
    state, before, after = model.start(context), [], []
    for step in range(4):
        before.append(model.features(state))
        state, _ = model.step(state, actions[:, step])
        after.append(model.features(state))
    rollout = model.imagine(context, actions)
    assert torch.equal(model.features_of(rollout), torch.stack(after, dim=1))

    seen: list[torch.Tensor] = []

    def doubt(features: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        seen.append(features)
        return features.sum(1) + taken.sum(1)

    expected = torch.stack(before, dim=1).sum(2) + actions.sum(2)
    filled = model.with_doubt(rollout, doubt)
    torch.testing.assert_close(filled.doubt, expected)
    model.doubt = doubt
    rolled, first = model.roll(model.start(context), actions[:, :1])
    _, rest = model.roll(rolled, actions[:, 1:])  # which does not begin at the context
    assert first.doubt is not None and rest.doubt is not None
    torch.testing.assert_close(torch.cat([first.doubt, rest.doubt], dim=1), expected)
    torch.testing.assert_close(model.imagine(context, actions).doubt, expected)
    assert rest.is_finite.all()
