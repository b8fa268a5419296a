"""Figures and the page of episodes in a simulator.

::

    <out>/control.json               every figure
          index.html                 the same to look at, one file, offline
          films/*.gif                real beside imagined
          recipe.yaml                makes a dataset of the recordings
          control_recordings/*.npz
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenwm.control.acted import ActedEpisode, ClosedLoop, PlanRecord
from tokenwm.control.recordings import RECIPE
from tokenwm.data.storage.atomic import open_atomically
from tokenwm.evaluation.report.pictures import Panel, film, side_by_side, write_gif
from tokenwm.pages.plot_style import CYCLE, Plot, new_figure, to_png
from tokenwm.pages.render import render
from tokenwm.pages.words import count, seconds
from tokenwm.strict import plain

FIGURES, PAGE, FILMS = "control.json", "index.html", "films"


def write_closed_loop(out: Path, loop: ClosedLoop) -> Path:
    """Write figures, films and the page.

    Args:
        out: Folder, which must be there.
        loop: The episodes.

    Returns:
        The page.
    """
    text = json.dumps(plain(loop, without=("film",)), indent=1, allow_nan=False, default=str)
    with open_atomically(out / FIGURES) as file:
        file.write(text.encode() + b"\n")
    for earlier in (out / FILMS).glob("episode_*.gif"):
        earlier.unlink()
    films = [
        (_caption(episode, loop), path.read_bytes())
        for episode in loop.episodes
        if (path := _write_film(out, episode)) is not None
    ]
    with open_atomically(out / PAGE) as file:
        file.write(_page(loop, films).encode())
    return out / PAGE


def sentences(loop: ClosedLoop) -> list[str]:
    """The result in sentences, the first one first."""
    success, returns = loop.success, loop.returns
    found = [
        f"The return is {returns['mean']:.4g} on the mean "
        f"({_interval(returns['low'], returns['high'])})."
    ]
    if loop.to_goals:
        found = []
    if success is not None:
        rate, low, high = (100.0 * success[name] for name in ("rate", "low", "high"))
        found.insert(
            0,
            f"{success['successes']:.0f} of {count(int(success['trials']), 'episode')} succeed: "
            f"{rate:.0f} % ({low:.0f} to {high:.0f} %).",
        )
    if loop.others:
        told = ", ".join(f"{name} in {number}" for name, number in loop.others.items())
        found.insert(1, f"Beside it, from the same starts: {told}.")
    latency, fallbacks = loop.latency_seconds, loop.fallbacks
    if latency is not None:
        found.append(
            "Where a plan is due, its action comes after "
            f"{seconds(latency['p50'])} on the median, after {seconds(latency['p99'])} in 99 of "
            "100 cases."
        )
    if loop.stopped:
        why = next(episode.stopped for episode in loop.episodes if episode.stopped)
        found.append(f"In {count(loop.stopped, 'episode')} the robot was stopped, first by: {why}.")
    if loop.missed_deadlines or any(fallbacks.values()):
        parts = [f"{number:,} by the {name}" for name, number in fallbacks.items() if number]
        found.append(
            f"{count(loop.missed_deadlines, 'plan')} missed the deadline; of all steps were taken "
            f"{' and '.join(parts) or 'none otherwise'}."
        )
    return found


def _page(loop: ClosedLoop, films: Sequence[tuple[str, bytes]]) -> str:
    first, *rest = sentences(loop)
    success, latency = loop.success, loop.latency_seconds
    tiles = [("return", f"{loop.returns['mean']:.4g}", "mean over the episodes")]
    if loop.to_goals:
        tiles = [(name, f"{number}", "succeed") for name, number in loop.others.items()]
    if success is not None:
        tiles.insert(0, ("success", f"{100 * success['rate']:.0f} %", f"of {success['trials']}"))
    if latency is not None:
        tiles.append(
            ("latency, p95", seconds(latency["p95"]), f"of {latency['steps']:,.0f} plans due")
        )
    tiles += [
        ("missed deadlines", f"{loop.missed_deadlines:,}", "plans that were not there in time"),
        ("fallbacks", f"{sum(loop.fallbacks.values()):,}", "steps not by the plan that was due"),
    ]
    about = loop.about
    return render(
        "control/closed_loop.html",
        title=f"{about.get('env_id', 'simulator')}: decisions in closed loop",
        heading=str(about.get("env_id", "simulator")),
        subtitle=(
            f"{count(len(loop.episodes), 'episode')} at {loop.rate:g} Hz, planner "
            f"{about.get('planner')}, objective {about.get('objective')}"
        ),
        level="",
        verdict=first,
        sentences=rest,
        tiles=tiles,
        films=films,
        plots=_plots([plan for episode in loop.episodes for plan in episode.plans]),
        head=("episode", "success", "return", "steps", "plans", "missed", "safe actions"),
        rows=[_row(episode) for episode in loop.episodes],
        about=f"model {about.get('model')}, seed {about.get('seed')}",
        recipe=RECIPE if any(episode.recording for episode in loop.episodes) else None,
    )


def _row(episode: ActedEpisode) -> tuple[str, ...]:
    told = {None: "–", True: "yes", False: "no"}[episode.success]
    return (
        f"{episode.index}",
        told,
        f"{episode.reward:.4g}",
        f"{episode.num_steps:,}",
        f"{len(episode.plans):,}",
        f"{episode.missed_deadlines:,}",
        f"{episode.came.get('safe action', 0):,}",
    )


def _caption(episode: ActedEpisode, loop: ClosedLoop) -> str:
    words = {None: [], True: ["succeeds"], False: ["does not succeed"]}[episode.success]
    words += [] if loop.to_goals else [f"return {episode.reward:.4g}"]
    return (
        f"episode {episode.index}: {', '.join(words)} in {seconds(episode.num_steps / loop.rate)}"
    )


def _write_film(out: Path, episode: ActedEpisode) -> Path | None:
    """The film of an episode, if one was kept: a frame for each step of the model."""
    shown = episode.film
    if shown is None:
        return None
    panels = [Panel(title="real", frames=side_by_side(shown.real))]
    if shown.goal is not None:
        goal = np.broadcast_to(shown.goal, shown.real.shape)
        panels.insert(0, Panel(title="goal", frames=side_by_side(goal)))
    if shown.imagined is not None:
        panels.append(Panel(title="as imagined before", frames=side_by_side(shown.imagined)))
    (out / FILMS).mkdir(exist_ok=True)
    path = out / FILMS / f"episode_{episode.index:06d}.gif"
    num_observed = 1 if shown.imagined is not None else len(shown.real)
    write_gif(path, film(panels, num_observed=num_observed), shown.rate)
    return path


def _plots(plans: Sequence[PlanRecord]) -> list[Plot]:
    """One dot a plan: what it expected against what it got, and its spread against surprise."""
    pairs = (
        (
            "expected",
            "What plans expect",
            "the plan's expected return",
            "real reward over its steps",
            "Of a predicted reward, dots on a line: the model is right about what its plans are "
            "worth. Another objective has another scale; then only the order counts.",
            [(plan.expected_return, plan.reward) for plan in plans],
        ),
        (
            "doubt",
            "Doubt",
            "the plan's doubt",
            "surprise at what followed, nats per token",
            "Dots that rise to the right: the model is surprised where it doubted.",
            [(plan.doubt, plan.surprise) for plan in plans],
        ),
        (
            "spread",
            "Spread over the noise",
            "standard deviation of the plan's return over noise",
            "surprise at what followed, nats per token",
            "The same for the spread of the plan's imagined futures.",
            [(plan.spread, plan.surprise) for plan in plans],
        ),
    )
    made = []
    for name, title, across, up, caption, dots in pairs:
        known = np.array([dot for dot in dots if None not in dot], dtype=np.float64)
        known = known.reshape(-1, 2)[np.isfinite(known.reshape(-1, 2)).all(1)]
        if len(known) < 3 or np.ptp(known[:, 0]) == 0.0:
            continue
        figure, axes = new_figure()
        axes.scatter(known[:, 0], known[:, 1], s=14, color=CYCLE[0], alpha=0.6, linewidths=0)
        axes.set_xlabel(across, fontsize=9)
        axes.set_title(up, fontsize=9, loc="left")
        made.append(Plot(name=name, title=title, caption=caption, png=to_png(figure)))
    return made


def _interval(low: float, high: float) -> str:
    if np.isnan(low):
        return "one episode has no interval"
    return f"95 %: {low:.4g} to {high:.4g}"
