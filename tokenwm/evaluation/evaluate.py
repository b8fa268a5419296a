"""Measure a world model on held-out episodes, open loop, beside its baselines.

``docs/evaluation.md`` defines each figure.

::

    evaluation = evaluate(tokenwm.load("runs/pusht/world_model"), "runs/pusht/frames")
    evaluation.horizons.effective_horizon, evaluation.psnr["model"].mean[4]
"""

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm import __version__
from tokenwm.data.shards.manifest import manifest_sha256
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.config import EvaluationConfig, ProgressCallback
from tokenwm.evaluation.examples import choose_examples, imagine_examples
from tokenwm.evaluation.figures import CodebookUse, Example, Flicker, Speed
from tokenwm.evaluation.flicker import NOISE_LEVELS, measure_flicker
from tokenwm.evaluation.folds import Fold, check_folds, check_held_out_once, has_other_splits
from tokenwm.evaluation.measure import measure
from tokenwm.evaluation.metrics import psnr_from_mse
from tokenwm.evaluation.outside import count_outside, summarize_outside
from tokenwm.evaluation.results import Evaluation
from tokenwm.evaluation.rows import count_codes
from tokenwm.evaluation.scores import RowScores
from tokenwm.evaluation.starts import ending_starts, shuffled_rows
from tokenwm.evaluation.summarize import summarize_scores
from tokenwm.heads.readout import readout_for
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.starts import Starts, choose_split, choose_starts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.sequence.vocabulary import warn_of_rewards_outside
from tokenwm.tokenizer.frames import codebook_usage

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
        config: Settings.
        model_folder: Where the model came from, for the record only.
        progress: Called after every imagined step with steps done, steps in all and a message.

    Raises:
        TokenwmError: The data do not fit the model, or no episode is long enough.
    """
    fold = Fold(model=model, data=data, model_folder=model_folder)
    return evaluate_folds([fold], config, progress=progress)


def evaluate_folds(
    folds: Sequence[Fold],
    config: EvaluationConfig | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measure several models of one configuration, each on the episodes held out from it, as one.

    Args:
        folds: The models with their data. Every episode may be held out in one of them only.
        config: Settings, the same for each.
        progress: Called after every imagined step with steps of this model done, steps of it in
            all, and a message.

    Raises:
        TokenwmError: Data do not fit a model, no episode is long enough, or the models and datasets
            are no folds of one thing.
    """
    config = config or EvaluationConfig()
    readers = [ShardReader(fold.data) for fold in folds]
    check_folds(folds, readers)
    parts = [_choose(fold, reader, config) for fold, reader in zip(folds, readers, strict=True)]
    check_held_out_once([part.starts.keys for part in parts], folds)
    scores = []
    for number, part in enumerate(parts):
        where = f", model {number + 1} of {len(parts)}" if len(parts) > 1 else ""
        scores.append(_measure(part, config, progress, where))
    together = RowScores.joined(scores)
    starts = Starts(
        rows=tuple(row for part in parts for row in part.starts.rows),
        skipped={key: size for part in parts for key, size in part.starts.skipped.items()},
    )
    manifests = [part.reader.manifest for part in parts for _ in part.starts.rows]
    models = [part.model for part in parts]
    outside = [count_outside(part.model, part.reader, part.starts.keys) for part in parts]
    reconstruction = float(psnr_from_mse(together.mse["reconstruction"].mean()))
    return Evaluation(
        **summarize_scores(models[0], manifests, starts, together),
        control_rate=models[0].control_rate,
        num_models=len(parts),
        has_other_splits=any(has_other_splits(part.model, part.reader.manifest) for part in parts),
        outside=summarize_outside(models, outside, reconstruction),
        flicker=_flicker(parts, config.seed),
        codebook=min(
            (_codebook(part, config, reconstruction) for part in parts), key=lambda use: use.usage
        ),
        speed=_speed(models[0], scores[0], config, len(parts[0].starts.rows)),
        skipped=starts.skipped,
        examples=_examples(parts, starts, together, config),
        provenance=_provenance(parts, config),
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A model and what is measured of it: ``donors``, rows of ``starts``; see `shuffled_rows`."""

    model: TokenWorldModel
    model_folder: Path | str | None
    reader: ShardReader
    split: str
    starts: Starts
    donors: NDArray[np.int64] | None


def _choose(fold: Fold, reader: ShardReader, config: EvaluationConfig) -> _Part:
    check_data_fits(fold.model, reader)
    split = choose_split(reader.manifest, config.split)
    starts = choose_starts(
        reader,
        split,
        num_steps=config.num_context_frames + config.imagination_horizon,
        num_starts=config.num_starts,
        max_episodes=config.max_episodes,
    )
    return _Part(
        model=fold.model,
        model_folder=fold.model_folder,
        reader=reader,
        split=split,
        starts=starts,
        donors=shuffled_rows([row.key for row in starts.rows], config.seed),
    )


def _measure(
    part: _Part, config: EvaluationConfig, progress: ProgressCallback | None, where: str
) -> RowScores:
    def report(done: int, total: int, message: str) -> None:
        if progress is not None:
            progress(done, total, message + where)

    endings = ending_starts(
        part.reader,
        part.starts,
        num_context=config.num_context_frames,
        horizon=config.imagination_horizon,
        num_starts=config.num_starts,
    )
    rows = part.starts.rows
    readout = readout_for(part.model, part.reader) if config.readout else None
    scores = measure(part.model, part.reader, rows, part.donors, config, report, endings, readout)
    if scores.reward:
        data = f"split {part.split} of {part.reader.root}"
        warn_of_rewards_outside(part.model.vocabulary, scores.reward["truth"], data)
    return scores


def _examples(
    parts: Sequence[_Part], starts: Starts, scores: RowScores, config: EvaluationConfig
) -> tuple[Example, ...]:
    """Pictures of starts spread over the ranking of all of them, whichever model they belong to."""
    chosen = choose_examples(starts, scores.mse, config.num_examples)
    found: dict[int, Example] = {}  # by row of all starts
    first = 0
    for part in parts:
        end = first + len(part.starts.rows)
        rows = [row for row, _ in chosen if first <= row < end]
        mine = [(row - first, rank) for row, rank in chosen if row in rows]
        pictures = imagine_examples(part.model, part.reader, part.starts, part.donors, mine, config)
        found |= dict(zip(rows, pictures, strict=True))
        first = end
    return tuple(found[row] for row, _ in chosen)


def _flicker(parts: Sequence[_Part], seed: int) -> Flicker:
    shares = np.concatenate(
        [measure_flicker(part.model, part.reader, part.starts.keys, seed) for part in parts]
    )
    return Flicker(
        noise_levels=NOISE_LEVELS,
        changed=tuple(shares.mean(axis=0).tolist()),
        num_episodes=len(shares),
    )


def _codebook(part: _Part, config: EvaluationConfig, reconstruction: float) -> CodebookUse:
    everything = part.reader.keys(part.split)
    keys = part.starts.keys if config.max_episodes is not None else everything
    counts = count_codes(part.model, part.reader, keys, config.batch_size)
    usage, perplexity = codebook_usage(counts.cpu())
    use = CodebookUse(
        codebook_size=len(counts),
        num_used=int((counts > 0).sum()),
        usage=usage,
        perplexity=perplexity,
        reconstruction=reconstruction,
    )
    if use.is_dead:
        logger.warning(
            "DEAD CODEBOOK: the frames of split %s use %d of %d codes (%.1f %%); the tokenizer has "
            "collapsed, train it again with quantizer=fsq or a smaller codebook",
            part.split,
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


def _provenance(parts: Sequence[_Part], config: EvaluationConfig) -> dict[str, Any]:
    """Provenance of a report; of several models the first stands for what they share."""
    first, *others = parts
    model, manifest = first.model, first.reader.manifest
    return {
        **_origin(first),
        "model": dict(model.provenance),
        "model_config": asdict(model.world_model.config),
        "num_parameters": sum(w.numel() for w in model.world_model.parameters()),
        "num_tokenizer_parameters": sum(w.numel() for w in model.tokenizer.parameters()),
        "tokenizer_config": asdict(model.tokenizer.config),
        "tokens_per_frame": model.vocabulary.tokens_per_frame,
        "image_size": list(model.tokenizer.image_size),
        "cameras": list(model.cameras),
        "data_name": manifest.name,
        "data": dict(manifest.provenance),
        "split": first.split,
        "evaluation": {**asdict(config), "split": first.split},
        **({"further_models": [_origin(part) for part in others]} if others else {}),
        "versions": {
            "tokenwm": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _origin(part: _Part) -> dict[str, Any]:
    """Marks that tell a model and its data from others."""
    reader = part.reader
    return {
        "model_folder": None if part.model_folder is None else str(part.model_folder),
        "tokenizer_hash": part.model.vocabulary.tokenizer_hash,
        "data_folder": reader.root,
        "data_manifest_sha256": manifest_sha256(reader.root),
    }
