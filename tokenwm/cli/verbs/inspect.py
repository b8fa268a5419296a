"""``tokenwm inspect PATH``: what a file or folder of recordings holds, and a recipe for it."""

from typing import Any

from rich.console import Console

from tokenwm.cli.console import console_of, give, say, show_table
from tokenwm.cli.options import parse
from tokenwm.data.readers.columns.columns import dimension_names, names_of, with_note
from tokenwm.data.readers.pictures.pixels import picture_shape
from tokenwm.data.recipes.starter import starter_recipe
from tokenwm.data.recipes.survey import Survey, survey
from tokenwm.errors import RecipeError

MOST_PROBLEMS = 20
MOST_TASKS = 10
NUMBERS = ("state", "action", "reward")
"""Options of a recipe that name columns of numbers."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("inspect", argv)
    if arguments.recipe is not None and not arguments.recipe.parent.is_dir():
        raise RecipeError(f"{arguments.recipe}: folder {arguments.recipe.parent} does not exist")
    found = survey(arguments.path, num_episodes=arguments.episodes)
    console = console_of(arguments)
    print_survey(console, found)
    recipe = starter_recipe(found)
    give(arguments, {**as_plain(found), "recipe": recipe})
    choose = f"choose the {' and the '.join(found.unclear)} in it, then " if found.unclear else ""
    if arguments.recipe is None:
        say(console, "\na recipe to begin with (write it to a file with --recipe FILE):\n")
        say(console, recipe)
    else:
        is_there = arguments.recipe.exists() and not arguments.overwrite
        if is_there and arguments.recipe.read_bytes() != recipe.encode():
            raise RecipeError(
                f"{arguments.recipe} exists already, with another text; choose another name, or "
                "replace it with --overwrite"
            )
        if not is_there:
            arguments.recipe.write_text(recipe, encoding="utf-8")
        say(
            console,
            f"recipe: {arguments.recipe}{', the same as before' if is_there else ''}; next: "
            f"{choose}tokenwm prepare {arguments.recipe} --out DIR",
        )
    return 0


def as_plain(found: Survey) -> dict[str, Any]:
    """The survey as plain values, for ``--json``."""
    source = found.source
    columns = {option: names_of(getattr(source.config, option)) for option in NUMBERS}
    names = ["facts", "licence", "num_rows", "rate", "control_rate", "ranges", "tasks"]
    names += ["ambiguous", "unclear", "problems"]
    return {
        "path": str(source.config.paths[0]),
        "num_episodes": len(found.refs),
        "num_looked_into": len(found.looked_into),
        "cameras": source.cameras,
        "columns": columns,
        "action_kind": source.action_kind.kind,
        "gaps": [gap.text for gap in found.gaps],
        **{name: getattr(found, name) for name in names},
    }


def print_survey(console: Console, found: Survey) -> None:
    """Show facts, cameras, ranges, tasks and problems."""
    source = found.source
    seen, every = len(found.looked_into), len(found.refs)
    rows = found.num_rows if seen == every else sum(ref.num_rows or 0 for ref in found.refs)
    facts = dict(found.facts)
    facts["episodes"] = f"{every:,}" + ("" if seen == every else f", looked into {seen:,}")
    if rows:
        length = f", {rows / found.rate / 60:.1f} minutes" if found.rate else ""
        facts["steps"] = f"{rows:,}{length}"
    facts["rate"] = "not recorded" if found.rate is None else f"{found.rate:g} Hz"
    for camera, column in source.cameras.items():
        shape = " × ".join(map(str, _picture_size(source.columns[column].shape)))
        facts[f"camera {camera}"] = f"{column}, {shape}"
    for option in NUMBERS:
        names = ", ".join(names_of(getattr(source.config, option))) or "none"
        facts[option] = "not clear" if option in found.unclear else names
    others = sorted(set(source.columns) - _used(found))
    noted = ", ".join(with_note(name, source.columns[name]) for name in others)
    facts |= {"not used": noted or "none", "licence": found.licence or "not stated"}
    show_table(console, facts.items(), title=str(source.config.paths[0]))
    _print_ranges(console, found)
    _print_tasks(console, found)
    for option, columns in found.ambiguous.items():
        say(console, f"the {option} is a guess among: {', '.join(columns)}")
    for option, columns in found.unclear.items():
        candidates = ", ".join(columns)
        say(console, f"no column is plainly the {option}; candidates: {candidates}")
    _print_problems(console, found)


def _picture_size(row_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of a camera's pictures."""
    shape = picture_shape(row_shape)
    return row_shape[:2] if shape is None else (shape.height, shape.width)


def _used(found: Survey) -> set[str]:
    config = found.source.config
    return {
        *found.source.cameras.values(),
        *names_of(config.state),
        *names_of(config.action),
        *names_of(config.reward),
        *names_of(config.task_state),
        *names_of(getattr(found.source, "terminated", None)),
    }


def _print_ranges(console: Console, found: Survey) -> None:
    rows = []
    for option, (low, high) in found.ranges.items():
        columns = names_of(getattr(found.source.config, option))
        # Of several columns with one number each, the columns' names will do.
        names = dimension_names(found.source.columns, columns) or columns
        for index, (least, most) in enumerate(zip(low, high, strict=True)):
            name = f" {names[index]}" if len(names) == len(low) and names != (option,) else ""
            place = "" if len(low) == 1 else f"[{index}]"
            rows.append((f"{option}{place}{name}", f"{least:.4g}", f"{most:.4g}"))
    show_table(console, rows, "number", "smallest", "largest", title="ranges")
    decision = found.source.action_kind
    what = "ids counted from 0" if decision.kind == "discrete" else "quantities"
    if_all = " if all of these columns are the action" if "action" in found.unclear else ""
    say(
        console,
        f"actions are {decision.kind}, {what}{if_all}: {decision.why} "
        "(to change that: source.action_kind in the recipe)",
    )


def _print_tasks(console: Console, found: Survey) -> None:
    tasks = sorted(found.tasks.items(), key=lambda item: -item[1])
    for task, count in tasks[:MOST_TASKS]:
        if task:
            say(console, f"task, {count} episode(s): {task}")
    if len(tasks) > MOST_TASKS:
        say(console, f"and {len(tasks) - MOST_TASKS} more tasks")


def _print_problems(console: Console, found: Survey) -> None:
    for gap in found.gaps:
        say(console, f"declared and found differ: {gap.text}")
    if not found.problems and not found.gaps:
        say(console, "no problem found; pictures of one episode were decoded, prepare decodes all")
    elif found.problems:
        rows = list(found.problems.items())[:MOST_PROBLEMS]
        title = f"would be left out: {len(found.problems)} episode(s)"
        show_table(console, rows, "episode", "reason", title=title, left=2)
