"""Lightning callback: from which dataset of a mixture the windows of a step came."""

from collections import Counter
from typing import Any

import lightning.pytorch as pl

from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.windows import Batch


class DataCounts(pl.Callback):
    """Logs what a step was trained on whenever the trainer logs; counts are of all ranks.

    ``data/windows/NAME`` counts windows of a dataset, or of its real or synthetic part, and
    ``data/real_fraction`` is the share of recorded ones; both only where there is something to tell
    apart. ``data/corrupt_episodes`` counts since the run began, where skipping is allowed.
    ``data/epochs`` says how often each training window was seen, on average.
    """

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        *_: Any,
    ) -> None:
        """Log the batch that was just trained on."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % every or not isinstance(data, EpisodeDataModule):
            return
        num_windows = sum(len(part.windows) for part in data.strata)
        pl_module.log("data/epochs", data.windows_seen / num_windows)
        if data.on_corrupt == "skip":
            pl_module.log("data/corrupt_episodes", float(len(data.corrupt)))
        if len(data.strata) > 1:
            counts = Counter(batch.sources)
            real = sum(counts[part.name] for part in data.strata if not part.is_synthetic)
            values = {f"data/windows/{part.name}": counts[part.name] for part in data.strata}
            for name, value in values.items():
                pl_module.log(name, float(value), sync_dist=True, reduce_fx="sum")
            share = real / len(batch.sources)  # ranks have equally many windows
            pl_module.log("data/real_fraction", share, sync_dist=True)
