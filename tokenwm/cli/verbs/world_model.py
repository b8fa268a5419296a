"""``tokenwm world-model fit|validate|test``: the world model, through LightningCLI."""

from pathlib import Path

from lightning.pytorch.callbacks import Callback

from tokenwm.cli.training.callbacks import RolloutPictures
from tokenwm.cli.training.lightning_cli import TrainingCLI, run
from tokenwm.cli.training.model_exports import ExportWorldModel
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.data_of import data_of
from tokenwm.transformer.training import WorldModelModule


class WorldModelCLI(TrainingCLI):
    """The stage ``world_model``; the checkpoint folder is ``<run>/model``."""

    verb = "world-model"
    module = WorldModelModule

    @staticmethod
    def export(root: Path) -> list[Callback]:
        """Callbacks that write what the run leaves behind."""
        return [ExportWorldModel(root / "model"), RolloutPictures(root / "pictures")]

    def next_command(self) -> list[str]:
        """Measure the model on the frames."""
        try:
            frames = data_of(self.folder / "model")
        except TokenwmError:
            frames = "FRAMES"
        return ["evaluate", str(self.folder), "--data", frames]


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    return run(WorldModelCLI, argv)
