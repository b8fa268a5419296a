"""``tokenwm tokenizer fit|validate|test``: the frame tokenizer, through LightningCLI."""

from pathlib import Path

from lightning.pytorch.callbacks import Callback

from tokenwm.cli.training.lightning_cli import TrainingCLI, run
from tokenwm.cli.training.model_exports import ExportTokenizer
from tokenwm.tokenizer.training import FrameTokenizerModule


class TokenizerCLI(TrainingCLI):
    """The stage ``tokenizer``; the checkpoint folder is ``<run>/model``."""

    verb = "tokenizer"
    module = FrameTokenizerModule

    @staticmethod
    def export(root: Path) -> list[Callback]:
        """Callbacks that write what the run leaves behind."""
        return [ExportTokenizer(root / "model")]

    def next_command(self) -> list[str]:
        """Encode the frames."""
        frames = self.datamodule.root
        return ["tokenize", frames, "--tokenizer", str(self.folder), "--out", "DIR"]


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    return run(TokenizerCLI, argv)
