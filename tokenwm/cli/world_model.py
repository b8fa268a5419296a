"""``tokenwm world-model fit|validate|test``: the world model, through LightningCLI."""

from pathlib import Path

from lightning.pytorch.callbacks import Callback

from tokenwm.cli.callbacks import RolloutPictures
from tokenwm.cli.export import ExportWorldModel
from tokenwm.cli.training import TrainingCLI, run
from tokenwm.transformer.training import WorldModelModule


class WorldModelCLI(TrainingCLI):
    """The stage ``world_model``; the checkpoint folder is ``<run>/model``."""

    stage = "world model"

    @staticmethod
    def export(root: Path) -> list[Callback]:
        """Callbacks that write what the run leaves behind."""
        return [ExportWorldModel(root / "model"), RolloutPictures(root / "pictures")]


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    return run(WorldModelCLI, WorldModelModule, argv, "world-model")
