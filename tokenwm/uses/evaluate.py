"""Measure a world model on held-out episodes, open loop, beside its baselines.

``docs/evaluation.md`` defines each figure.

::

    evaluation = evaluate(tokenwm.load("runs/pusht/world_model"), "runs/pusht/frames")
    evaluation.horizons.effective_horizon, evaluation.psnr["model"].mean[4]
"""

import hashlib
import logging
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenwm import __version__
from tokenwm.data.manifest import MANIFEST_NAME
from tokenwm.data.shards import ShardReader
from tokenwm.imagination.rollout import TokenWorldModel
from tokenwm.sequence.vocabulary import warn_of_rewards_outside
from tokenwm.tokenizer.frames import codebook_usage
from tokenwm.uses.examples import choose_examples, imagine_examples
from tokenwm.uses.measure import EvaluationConfig, ProgressCallback, RowScores, measure
from tokenwm.uses.recordings import count_codes
from tokenwm.uses.results import (
    CodebookUse,
    Evaluation,
    Speed,
)
from tokenwm.uses.starts import (
    Starts,
    check_data_fits,
    choose_split,
    choose_starts,
    ending_starts,
    shuffled_rows,
)
from tokenwm.uses.summarize import summarize_scores

logger = logging.getLogger(__name__)


def evaluate(
    model: TokenWorldModel,
    data: Path | str,
    config: EvaluationConfig | None = None,
    *,
    model_folder: Path | str | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measure a model.

    Args:
        model: From :func:`tokenwm.load`; it stays on its device.
        data: Folder of frame shards, as ``tokenwm prepare`` writes it.
        config: What is measured.
        model_folder: Where the model came from, for the record only.
        progress: Called after every imagined step with steps done, steps in all and a message.

    Raises:
        TokenwmError: The data do not fit the model, or no episode is long enough.
    """
    config = config or EvaluationConfig()
    reader = ShardReader(data)
    check_data_fits(model, reader)
    split = choose_split(reader.manifest, config.split)
    starts = choose_starts(
        reader,
        split,
        num_steps=config.num_context_frames + config.imagination_horizon,
        num_starts=config.num_starts,
        max_episodes=config.max_episodes,
    )
    donors = shuffled_rows([row.key for row in starts.rows], config.seed)
    report = progress or (lambda done, total, message: None)
    endings = ending_starts(
        reader,
        starts,
        num_context=config.num_context_frames,
        horizon=config.imagination_horizon,
        num_starts=config.num_starts,
    )
    scores = measure(model, reader, starts.rows, donors, config, report, endings)
    if scores.reward:
        warn_of_rewards_outside(model.vocabulary, scores.reward["truth"], f"split {split}")
    codebook = _codebook(model, reader, split, starts, config)
    chosen = choose_examples(starts, scores.mse, config.num_examples)
    examples = imagine_examples(model, reader, starts, donors, chosen, config)
    summary = summarize_scores(model, reader.manifest, starts, scores, config.seed)
    return Evaluation(
        **summary,
        control_rate=model.control_rate,
        codebook=codebook,
        speed=_speed(model, scores, config, len(starts.rows)),
        skipped=starts.skipped,
        examples=examples,
        provenance=_provenance(model, reader, split, config, model_folder),
    )


def _codebook(
    model: TokenWorldModel,
    reader: ShardReader,
    split: str,
    starts: Starts,
    config: EvaluationConfig,
) -> CodebookUse:
    keys = starts.keys if config.max_episodes is not None else reader.keys(split)
    counts = count_codes(model, reader, keys, config.batch_size)
    usage, perplexity = codebook_usage(counts.cpu())
    use = CodebookUse(
        codebook_size=len(counts),
        num_used=int((counts > 0).sum()),
        usage=usage,
        perplexity=perplexity,
    )
    if use.is_dead:
        logger.warning(
            "DEAD CODEBOOK: the frames of split %s use %d of %d codes (%.1f %%); the tokenizer has "
            "collapsed, train it again with quantizer=fsq or a smaller codebook",
            split,
            use.num_used,
            use.codebook_size,
            100 * usage,
        )
    return use


def _speed(
    model: TokenWorldModel, scores: RowScores, config: EvaluationConfig, num_rows: int
) -> Speed:
    num_full = num_rows // config.batch_size * config.imagination_horizon
    seconds = scores.step_seconds[:num_full] or scores.step_seconds
    steady = seconds[1:] or seconds  # the first step warms caches up
    return Speed(
        milliseconds_per_step=1000.0 * float(np.median(steady)),
        batch_size=min(config.batch_size, num_rows),
        device=_device_name(model.device),
        tokens_per_pass=model.vocabulary.tokens_per_frame / float(scores.passes.mean()),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def _provenance(
    model: TokenWorldModel,
    reader: ShardReader,
    split: str,
    config: EvaluationConfig,
    model_folder: Path | str | None,
) -> dict[str, Any]:
    manifest = reader.manifest
    return {
        "model_folder": None if model_folder is None else str(model_folder),
        "model": dict(model.provenance),
        "model_config": asdict(model.world_model.config),
        "num_parameters": sum(w.numel() for w in model.world_model.parameters()),
        "num_tokenizer_parameters": sum(w.numel() for w in model.tokenizer.parameters()),
        "tokenizer_config": asdict(model.tokenizer.config),
        "tokenizer_hash": model.vocabulary.tokenizer_hash,
        "tokens_per_frame": model.vocabulary.tokens_per_frame,
        "image_size": list(model.tokenizer.image_size),
        "cameras": list(model.cameras),
        "data_folder": str(reader.folder),
        "data_name": manifest.name,
        "data_manifest_sha256": hashlib.sha256(
            (reader.folder / MANIFEST_NAME).read_bytes()
        ).hexdigest(),
        "data": dict(manifest.provenance),
        "split": split,
        "evaluation": {**asdict(config), "split": split},
        "versions": {
            "tokenwm": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
