"""``tokenwm world-model fit|validate|test``: the world model, through LightningCLI."""

from pathlib import Path

from lightning.pytorch.callbacks import Callback

from tokenwm.checkpoint import read_provenance
from tokenwm.cli.training.callbacks import RolloutPictures
from tokenwm.cli.training.lightning_cli import TrainingCLI, run
from tokenwm.cli.training.model_exports import ExportWorldModel
from tokenwm.data.shards.manifest import MANIFEST_NAME
from tokenwm.data.storage.folder import is_url
from tokenwm.transformer.training import WorldModelModule


class WorldModelCLI(TrainingCLI):
    """The stage ``world_model``; the checkpoint folder is ``<run>/model``."""

    stage = "world model"

    @staticmethod
    def export(root: Path) -> list[Callback]:
        """Callbacks that write what the run leaves behind."""
        return [ExportWorldModel(root / "model"), RolloutPictures(root / "pictures")]

    def next_command(self) -> list[str]:
        """Measure the model on the frames."""
        frames = frames_of(self.folder / "model") or "FRAMES"
        return ["evaluate", str(self.folder), "--data", frames]


def frames_of(model: Path) -> str | None:
    """Frame shards of the recordings that a model was trained on, if its tokenizer was, too.

    Args:
        model: Checkpoint folder of a world model.

    Returns:
        None if they are not known, or no longer there.
    """
    provenance, of_tokenizer = read_provenance(model), read_provenance(model / "tokenizer")
    frames = of_tokenizer.get("data")
    same = provenance.get("data_provenance") == of_tokenizer.get("data_provenance")
    if not same or not isinstance(frames, str):
        return None
    return frames if is_url(frames) or (Path(frames) / MANIFEST_NAME).is_file() else None


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    return run(WorldModelCLI, WorldModelModule, argv, "world-model")
