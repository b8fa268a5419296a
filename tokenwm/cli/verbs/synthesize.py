"""``tokenwm synthesize MODEL --out DIR``: imagined episodes → frame shards marked as synthetic."""

from rich.console import Console

from tokenwm.cli.console import console_of, give, say
from tokenwm.cli.describe import of_manifest
from tokenwm.cli.devices import take_device
from tokenwm.cli.options import parse
from tokenwm.cli.progress import show_progress
from tokenwm.cli.verbs.evaluate import known_data, sampling_from
from tokenwm.pages.words import count
from tokenwm.strict import plain
from tokenwm.synthesis.episodes import SynthesisConfig
from tokenwm.synthesis.synthesize import Synthesized, synthesize
from tokenwm.synthesis.trust import TrustLimits


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("synthesize", argv)
    console = console_of(arguments)
    data = arguments.data or known_data(console, arguments.model)
    config = SynthesisConfig(
        model=str(arguments.model),
        data=str(data),
        actions=arguments.actions,
        noise=arguments.noise,
        num_episodes=arguments.episodes,
        num_context=arguments.context,
        horizon=arguments.horizon,
        least_steps=arguments.least_steps,
        split=arguments.split,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        sampling=sampling_from(arguments),
        limits=TrustLimits(surprise=arguments.max_surprise, doubt=arguments.max_doubt),
        device=str(take_device(arguments.device, console)),
    )
    with show_progress(console, "synthesize") as progress:
        made = synthesize(
            config,
            arguments.out,
            alpha=arguments.alpha,
            num_workers=arguments.workers,
            engine=arguments.engine,
            progress=progress,
            overwrite=arguments.overwrite,
        )
    print_summary(console, made)
    say(console, f"dataset: {arguments.out}")
    result = {"dataset": arguments.out, **of_manifest(made.manifest), "verdicts": made.verdicts}
    give(arguments, {**result, "limits": plain(made.limits), "imagined_steps": made.num_steps})
    return 0


def print_summary(console: Console, made: Synthesized) -> None:
    """Show where trust ends, and how many episodes came that far."""
    limits = made.limits
    known = {"surprise": limits.surprise, "doubt": limits.doubt}
    told = [f"{name} {value:.3g}" for name, value in known.items() if value is not None]
    if limits.num_episodes:
        told.append(
            f"{' and '.join(limits.set_on_held_out)} set on "
            f"{count(limits.num_episodes, 'held-out episode')}: at most {limits.alpha:.0%} like "
            "them are beyond"
        )
    say(console, f"limits, nats per token: {', '.join(told) or 'none'}")
    verdicts = ", ".join(f"{number} {name}" for name, number in made.verdicts.items())
    say(console, f"episodes: {verdicts}; {made.num_steps:,} imagined steps kept")
