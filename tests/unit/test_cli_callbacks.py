"""Which model a run leaves behind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tokenwm.cli.callbacks import ExportWorldModel


class Recorder(ExportWorldModel):
    """Writes the number of the save instead of a model."""

    saves = 0

    def _save(self, trainer: Any, pl_module: Any) -> None:
        self.saves += 1
        self._partial.mkdir(parents=True, exist_ok=True)
        (self._partial / "save").write_text(str(self.saves))


def trainer_with(nll: float | None) -> Any:
    metrics = {} if nll is None else {"val/frame_nll": torch.tensor(nll)}
    return SimpleNamespace(callback_metrics=metrics, sanity_checking=False, is_global_zero=True)


@pytest.mark.parametrize(
    ("history", "kept"), [([3.0, 2.0, 2.5, 4.0], 2), ([2.0, 3.0], 1), ([3.0, 2.0, 1.0], 3), ([], 1)]
)
def test_the_best_on_held_out_episodes_is_kept(
    tmp_path: Path, history: list[float], kept: int
) -> None:
    export = Recorder(tmp_path / "model")
    for nll in history:
        export.on_validation_end(trainer_with(nll), None)  # type: ignore[arg-type]
        assert not (tmp_path / "model").exists()
    export.on_train_end(trainer_with(None), None)  # type: ignore[arg-type]
    assert (tmp_path / "model" / "save").read_text() == str(kept)


def test_a_continued_run_remembers_its_best(tmp_path: Path) -> None:
    first = Recorder(tmp_path / "model")
    first.on_validation_end(trainer_with(1.0), None)  # type: ignore[arg-type]
    second = Recorder(tmp_path / "model")
    second.load_state_dict(first.state_dict())
    second.on_validation_end(trainer_with(2.0), None)  # type: ignore[arg-type]
    second.on_train_end(trainer_with(None), None)  # type: ignore[arg-type]
    assert second.saves == 0
    assert (tmp_path / "model" / "save").read_text() == "1"


def test_continuing_a_finished_run_never_loses_its_model(tmp_path: Path) -> None:
    first = Recorder(tmp_path / "model")
    first.on_validation_end(trainer_with(1.0), None)  # type: ignore[arg-type]
    first.on_train_end(trainer_with(None), None)  # type: ignore[arg-type]
    second = Recorder(tmp_path / "model")
    second.load_state_dict(first.state_dict())
    second.on_validation_end(trainer_with(2.0), None)  # type: ignore[arg-type]
    second.on_train_end(trainer_with(None), None)  # type: ignore[arg-type]
    assert (tmp_path / "model" / "save").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
