"""Simulators that are recorded at their own rate: steps of several actions, phases, ends."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.readers.test_gymnasium import make_recipe
from tests.unit.data.readers.test_gymnasium import registered as registered
from tokenwm.data.episode import Episode
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.base import EpisodeRef, load_each
from tokenwm.data.readers.simulator import reader
from tokenwm.data.readers.simulator.recorder import EpisodeRecorder
from tokenwm.data.recipes.recipe import Recipe, parse_recipe
from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import EpisodeError, RecipeError, ShardError

FACTOR = 3


def make_chunks(env_kwargs: dict[str, Any] | None = None, **options: Any) -> Recipe:
    """Steps of three steps of an environment of 10 Hz."""
    source = {"rate": 10, "max_steps": 11} | options.pop("source", {})
    values = {"control_rate": 10 / FACTOR, "action_aggregation": "stack"} | options
    return parse_recipe(make_recipe(env_kwargs, **source).to_dict() | values)


def phase_of(index: int, phase: int) -> EpisodeRef:
    return EpisodeRef(key=f"e{index}_{phase}", index=index, phase=phase)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("phase", range(FACTOR))
def test_a_phase_is_a_part_of_the_whole_recording(phase: int, discrete: bool) -> None:
    whole = make_recipe({"discrete": discrete}, max_steps=11).open_source().load(phase_of(1, 0))
    part = make_chunks({"discrete": discrete}).open_source().load(phase_of(1, phase))
    kept = range(phase, 12, FACTOR)  # the last one has no action
    assert part.num_steps == len(kept)
    np.testing.assert_array_equal(part.state, whole.state[kept])
    np.testing.assert_array_equal(part.frames["top"], whole.frames["top"][kept])
    assert part.action.dtype == whole.action.dtype
    for step, row in enumerate(kept[:-1]):
        np.testing.assert_array_equal(part.action[step], whole.action[row : row + FACTOR].ravel())
        assert part.reward[step] == whole.reward[row : row + FACTOR].sum()
    assert not part.action[-1].any() and part.truncated[-2] and not part.terminated.any()
    assert part.metadata["return"] == whole.metadata["return"]
    assert part.metadata.get("phase") == (phase or None)
    measured = part.measured  # of the recording, once
    assert (measured["rows"] == 12 and measured["seconds"] == 1.2) if phase == 0 else not measured


@pytest.mark.parametrize("aggregation", ["stack", "sum", "last"])
@pytest.mark.parametrize("phase", range(FACTOR))
def test_an_end_within_a_step_ends_it_there(phase: int, aggregation: Any) -> None:
    whole = make_recipe({"length": 7}, max_steps=11).open_source().load(phase_of(0, 0))
    recipe = make_chunks({"length": 7}, action_aggregation=aggregation)
    part = recipe.open_source().load(phase_of(0, phase))
    steps = -(-(7 - phase) // FACTOR)
    assert part.num_steps == steps + 1
    np.testing.assert_array_equal(part.terminated, [*[False] * (steps - 1), True, False])
    assert not part.truncated.any()
    np.testing.assert_array_equal(part.state[-1], whole.state[7])  # how it ended
    np.testing.assert_array_equal(part.frames["top"][-1], whole.frames["top"][7])
    first = phase + FACTOR * (steps - 1)
    done = whole.action[first:7]
    missing = np.repeat(done[-1:], FACTOR - len(done), axis=0)
    expected = {
        "stack": np.concatenate([done, missing]).ravel(),
        "sum": done.sum(axis=0, dtype=np.float64).astype(np.float32),
        "last": done[-1],
    }[aggregation]
    np.testing.assert_array_equal(part.action[steps - 1], expected)
    assert part.reward[steps - 1] == whole.reward[first:7].sum()
    assert "terminated_after_end" not in part.metadata
    assert phase or part.measured["rows"] == 8  # what was added is not measured


def test_phases_need_one_recording_each_and_simulators_may_run_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def counting(*arguments: Any) -> EpisodeRecorder:
        made.append(arguments)
        return EpisodeRecorder(*arguments)

    monkeypatch.setattr(reader, "EpisodeRecorder", counting)
    options = {"env_id": "CartPole-v1", "cameras": {}, "state": "observation", "max_steps": 40}
    alone = make_chunks(source=options).open_source()
    several = make_chunks(source=options | {"num_envs": 2}).open_source()
    refs = [phase_of(index, phase) for index in range(3) for phase in range(FACTOR)]
    first = list(load_each(alone, refs))
    assert len(made) == 3
    assert not pickle.loads(pickle.dumps(alone))._kept
    # The second group begins within an episode of the first.
    for one, other in zip(first[1:], load_each(several, refs[1:]), strict=True):
        assert isinstance(one, Episode) and isinstance(other, Episode)
        assert one.metadata == other.metadata and one.key == other.key
        np.testing.assert_array_equal(one.state, other.state)
        np.testing.assert_array_equal(one.action, other.action)


def test_a_phase_with_one_step_is_too_short() -> None:
    source = make_chunks({"length": 2}).open_source()
    assert source.load(phase_of(0, 1)).num_steps == 2
    with pytest.raises(EpisodeError, match="e0_2: too short"):
        source.load(phase_of(0, 2))


def test_a_dataset_says_how_many_actions_a_step_holds(tmp_path: Path) -> None:
    recipe = make_chunks(all_phases=True)
    manifest = prepare(recipe, tmp_path / "chunks")
    assert manifest == Manifest.load(tmp_path / "chunks")
    assert manifest.actions_per_step == FACTOR and manifest.control_rate == 10 / FACTOR
    assert manifest.features["action"].shape == (3 * FACTOR,)
    assert {split: manifest.num_episodes(split) for split in ("train", "val", "test")} == {
        "train": FACTOR,
        "val": 1,
        "test": 1,
    }
    for wrong in (0, 4, True, "3", None):
        with pytest.raises(ShardError, match="actions_per_step is .* for an action of 9 dim"):
            replace(manifest, extra={"actions_per_step": wrong}).save(tmp_path / "chunks")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {"rate": None}}, "stack, but each environment step is a step.*source.rate"),
        ({"source": {"rate": 0}}, "rate is 0.0; expected Hz > 0, or null"),
        ({"control_rate": 4}, "control_rate 4 Hz does not divide the source's 10 Hz"),
        ({"control_rate": 10 / 1366}, "stack makes actions of 1,366 × 3 numbers, at most 4,096"),
    ],
)
def test_rates_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_chunks(**changes).open_source().load(phase_of(0, 0))


def test_a_rate_that_is_not_the_simulators_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    make_chunks().open_source()
    assert not caplog.records
    make_chunks(source={"rate": 30}, control_rate=10).open_source()
    assert "runs at 10 Hz, the recipe says source.rate 30 Hz; that is what counts" in caplog.text
