"""Episodes that were played, as recordings that ``tokenwm prepare`` reads.

::

    <out>/recipe.yaml               tokenwm prepare <out>/recipe.yaml --out DIR
          played/episode_*.npz      one per episode, a row per action of the robot
          played/episode_*.json     where it came from

Nothing in them happened: they are marked ``synthetic``, and stay so in every dataset made of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tokenwm.data.quality.checks import AS_IMAGINED
from tokenwm.data.storage.atomic import open_atomically
from tokenwm.errors import TokenwmError
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving.play.beginnings import Beginning, from_png
from tokenwm.serving.play.controls import Controls
from tokenwm.serving.play.session import Moment
from tokenwm.strict import dump_yaml, parse_yaml
from tokenwm.tokenizer.actions import BinTokenizer

FOLDER, RECIPE = "played", "recipe.yaml"
MOST_EPISODES = 1000
"""Episodes that a folder takes: a page must not fill the disk."""


def write_played(
    out: Path,
    model: TokenWorldModel,
    controls: Controls,
    beginning: Beginning,
    history: Sequence[Moment],
    row: int = 0,
    temperature: float = 1.0,
) -> Path:
    """Write an episode, and the recipe if it is not there yet.

    Args:
        out: Folder; made if missing.
        model: Model that imagined it.
        controls: The actions of its robot.
        beginning: Where it began.
        history: Moments, the beginning first.
        row: Future of the last moment that is meant, if there are several.
        temperature: At which it was drawn.

    Returns:
        The NPZ.

    Raises:
        TokenwmError: Nothing was imagined, the folder is full or cannot be written.
    """
    if len(history) < 2:
        raise TokenwmError("nothing was imagined yet; play some steps, then save")
    folder = out / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_recipe(out, model, controls)
        names = [path.stem.removeprefix("episode_") for path in folder.glob("episode_*.npz")]
        if len(names) >= MOST_EPISODES:
            raise TokenwmError(
                f"{folder} has {len(names)} episodes, the most that are saved there; choose "
                "another --out"
            )
        number = 1 + max((int(name) for name in names if name.isdecimal()), default=-1)
        path = folder / f"episode_{number:06d}.npz"
        about = _provenance(model, beginning, history, row, temperature)
        with open_atomically(path) as file:
            np.savez_compressed(file, **_arrays(model, controls, history, row))
        with open_atomically(path.with_suffix(".json")) as file:
            file.write(json.dumps(about, indent=1).encode())
        if not (out / RECIPE).is_file():
            with open_atomically(out / RECIPE) as file:
                file.write(dump_yaml(recipe_of(model, controls)).encode())
    except OSError as error:
        raise TokenwmError(f"{folder} cannot be written: {error}; choose another --out") from error
    return path


def _check_recipe(out: Path, model: TokenWorldModel, controls: Controls) -> None:
    """Check that what is played fits the recipe that lies there, if one does.

    Raises:
        TokenwmError: It is of another robot or rate, or cannot be read.
    """
    path = out / RECIPE
    if not path.is_file():
        return
    try:
        there = parse_yaml(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise TokenwmError(f"{path} cannot be read: {error}; choose another --out") from error
    own = recipe_of(model, controls)
    names = ("source", "control_rate", "action_aggregation")
    if not isinstance(there, dict) or any(there.get(name) != own[name] for name in names):
        raise TokenwmError(
            f"{path} is for episodes of another model or robot (its {', '.join(names)} differ); "
            "choose another --out"
        )


def recipe_of(model: TokenWorldModel, controls: Controls) -> dict[str, Any]:
    """The recipe that makes a dataset of what was played, of the kind the model was trained on."""
    state, action = model.vocabulary.state, model.vocabulary.action
    source: dict[str, Any] = {
        "type": "dreamer",
        "path": FOLDER,
        "rate": model.control_rate * controls.repeats,
        "action_convention": "after",
        "cameras": {camera: f"image_{camera}" for camera in model.cameras},
        "state": None if state is None else "state",
        "action": "action",
        "action_kind": "discrete" if controls.is_discrete else "continuous",
        "reward": "reward" if model.vocabulary.has_reward else None,
        "action_units": controls.units or None,
        "state_units": (state.units or None) if isinstance(state, BinTokenizer) else None,
    }
    if not isinstance(action, BinTokenizer):
        source["num_actions"] = action.num_values
    return {
        "name": "played",
        "source": {name: value for name, value in source.items() if value is not None},
        "control_rate": model.control_rate,
        "action_aggregation": "stack" if controls.repeats > 1 else "last",
        "image_size": list(model.tokenizer.image_size),
        "splits": {"val": 0.0, "test": 0.0},
        "quality": dict(AS_IMAGINED),
    }


def _arrays(
    model: TokenWorldModel, controls: Controls, history: Sequence[Moment], row: int
) -> dict[str, Any]:
    """Rows at the robot's rate: the frame of a step stands in all rows of its actions."""
    rows = _rows_followed(history, row)
    count, size = controls.repeats, len(controls.dimensions)
    frames = np.stack(
        [
            from_png(moment.pictures[at], len(model.cameras))
            for moment, at in zip(history, rows, strict=True)
        ]
    )
    chosen = [
        moment.actions[at].reshape(count, size)
        for moment, at in zip(history[1:], rows[1:], strict=True)
        if moment.actions is not None
    ]
    action = np.concatenate([*chosen, chosen[-1][:1]])  # the last row has none

    def repeated(values: Any) -> Any:
        """An entry a step → one a row."""
        array = np.asarray(values)
        return np.concatenate([np.repeat(array[:-1], count, axis=0), array[-1:]])

    num_rows = len(action)
    is_first, is_terminal = np.zeros((2, num_rows), dtype=np.bool_)
    is_first[0] = True
    is_terminal[-1] = history[-1].numbers["ends"][rows[-1]] > 0.5
    arrays: dict[str, Any] = {"action": action, "is_first": is_first, "is_terminal": is_terminal}
    arrays["synthetic"] = np.ones(num_rows, dtype=np.bool_)
    for number, camera in enumerate(model.cameras):
        arrays[f"image_{camera}"] = repeated(frames[:, number])
    if model.vocabulary.state is not None:
        states = [m.numbers["state"][r] for m, r in zip(history, rows, strict=True)]
        arrays["state"] = repeated(np.array(states, dtype=np.float32))
    if model.vocabulary.has_reward:  # of a step, in the row that its last action leads to
        arrays["reward"] = np.zeros(num_rows, dtype=np.float32)
        later = zip(history[1:], rows[1:], strict=True)
        arrays["reward"][count::count] = [m.numbers["reward"][r] for m, r in later]
    return arrays


def _rows_followed(history: Sequence[Moment], row: int) -> list[int]:
    """The future of each moment that led to one of the last."""
    rows = [row]
    for moment in reversed(history[1:]):
        rows.append(moment.rows[rows[-1]])
    return rows[::-1]


def _provenance(
    model: TokenWorldModel,
    beginning: Beginning,
    history: Sequence[Moment],
    row: int,
    temperature: float,
) -> dict[str, Any]:
    rows = _rows_followed(history, row)[1:]
    later = list(zip(history[1:], rows, strict=True))
    return {
        "synthetic": True,
        "model": None if model.folder is None else str(model.folder),
        "model_sha256": model.provenance.get("weights_sha256"),
        "dtype": str(model.world_model.transformer.dtype).removeprefix("torch."),
        "num_passes": None if model.approximation is None else model.approximation.num_passes,
        "temperature": temperature,
        "tokenizer_hash": model.vocabulary.tokenizer_hash,
        "episode": beginning.key,
        "step": beginning.step,
        "seeds": [moment.seed for moment, _ in later],
        "surprise": [moment.numbers["surprise"][at] for moment, at in later],
        "doubt": [moment.numbers["doubt"][at] for moment, at in later],
    }
