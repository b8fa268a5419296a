"""Episodes that never happened, as frame shards: limits, then ``prepare``."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from tokenwm.data.making.prepare import prepare
from tokenwm.data.quality.checks import AS_IMAGINED, QualityConfig
from tokenwm.data.recipes.recipe import Recipe, SplitConfig
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.tasks import ShowProgress
from tokenwm.errors import TokenwmError
from tokenwm.heads.doubt import NAME as DOUBT
from tokenwm.heads.doubt import Doubt
from tokenwm.heads.folder import has_head
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.token_world_model import load
from tokenwm.shapes import is_number, shown
from tokenwm.synthesis.episodes import SynthesisConfig
from tokenwm.synthesis.trust import TrustLimits, set_limits


@dataclass(frozen=True, kw_only=True)
class Synthesized:
    """A dataset of imagined episodes, and how they came out.

    Attributes:
        manifest: The dataset.
        limits: Where trust ends.
        verdicts: ``whole``, ``ended``, ``cut`` and ``rejected`` → episodes.
        num_steps: Imagined steps that were kept.
    """

    manifest: Manifest
    limits: TrustLimits
    verdicts: dict[str, int]
    num_steps: int


def synthesize(
    config: SynthesisConfig,
    out: str,
    *,
    alpha: float = 0.1,
    num_workers: int = 0,
    engine: str = "local",
    progress: ShowProgress | None = None,
    overwrite: bool = False,
) -> Synthesized:
    """Imagine episodes and write them as frame shards, marked as synthetic.

    Args:
        config: Settings. Where its limits are None and ``alpha`` is above 0, limits are set on
            held-out episodes (:mod:`tokenwm.synthesis.trust`).
        out: Folder or URL of the dataset.
        alpha: Share of episodes like the held-out ones that may be beyond a limit, in [0, 1); 0
            sets no limits.
        num_workers: As of :func:`~tokenwm.data.making.prepare.prepare`, which this resumes like.
        engine: The same.
        progress: The same.
        overwrite: The same.

    Raises:
        TokenwmError: A setting is impossible, model and data do not fit each other, a head is
            missing, or no episode can be trusted.
    """
    if not is_number(alpha) or not 0.0 <= alpha < 1.0:
        raise TokenwmError(f"alpha={shown(alpha)}; use a share in [0, 1)")
    reader = ShardReader(config.data)
    if reader.manifest.kind != "frames":
        raise TokenwmError(
            f"{config.data} holds {reader.manifest.kind} shards; give the folder of frames that "
            "'tokenwm prepare' wrote"
        )
    config = replace(config, limits=_limits(config, reader, alpha))
    manifest = prepare(
        _recipe(config, reader.manifest),
        out,
        num_workers=num_workers,
        progress=progress,
        overwrite=overwrite,
        engine=engine,
    )
    made = ShardReader(out, manifest=manifest)
    verdicts = Counter(str(made.metadata(key)["verdict"]) for key in made.episodes.keys)
    verdicts["rejected"] = len(manifest.excluded)
    return Synthesized(
        manifest=manifest,
        limits=config.limits,
        verdicts={name: verdicts[name] for name in ("whole", "ended", "cut", "rejected")},
        num_steps=manifest.num_steps("train") - manifest.num_episodes("train"),
    )


def _limits(config: SynthesisConfig, reader: ShardReader, alpha: float) -> TrustLimits:
    """The limits given by hand, and those that are missing set on held-out episodes."""
    given = config.limits
    if alpha == 0.0 and given.doubt is None:
        return given
    model = load(config.model, config.device)
    check_data_fits(model, reader)
    knows = has_head(model, DOUBT)
    if given.doubt is not None and not knows:
        raise TokenwmError(
            f"--max-doubt {given.doubt:g}: the model has no such head; `tokenwm heads "
            f"{config.model} --train doubt` trains it"
        )
    missing = [
        name
        for name in (("surprise", "doubt") if knows else ("surprise",))
        if getattr(given, name) is None
    ]
    if alpha == 0.0 or not missing:
        return given
    if knows:
        model.doubt = Doubt.load(model)
    found = set_limits(
        model,
        reader,
        missing,
        num_context=config.num_context,
        horizon=config.horizon,
        alpha=alpha,
        sampling=config.sampling,
        seed=config.seed,
    )
    return replace(
        found,
        surprise=found.surprise if given.surprise is None else given.surprise,
        doubt=found.doubt if given.doubt is None else given.doubt,
    )


def _recipe(config: SynthesisConfig, real: Manifest) -> Recipe:
    """The recipe of which ``prepare`` makes the dataset."""
    height, width = real.features[f"frames.{real.cameras[0]}"].shape[:2]
    values: dict[str, Any] = {}
    licence = real.provenance.get("licence")
    if licence:
        values["licence"] = str(licence)
    return Recipe(
        name=f"{real.name}_imagined",
        source=config,
        control_rate=real.control_rate,
        image_size=(height, width),
        splits=SplitConfig(val=0.0, test=0.0),
        quality=QualityConfig(**AS_IMAGINED),  # how far to trust it is said otherwise
        **values,
    )
