"""The picture of ``docs/architecture.md`` as a test: who may import whom, read off the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "tokenwm"

ORDER = (
    # free to all
    "errors",
    "shapes",
    "allocator",
    "throughput",
    "norm",
    "strict",
    "pages",
    "engines",
    "resume",
    # recordings to windows
    "data.episode",
    "data.storage",
    "data.quality",
    "data.readers.pictures",
    "data.readers",
    "data.readers.columns",
    "data.readers.recorded",
    "data.readers.lerobot",
    "data.readers.hdf5",
    "data.readers.videos",
    "data.readers.rlds",
    "data.readers.dreamer",
    "data.readers.simulator",
    "data.shards",
    "data.recipes",
    "data.quality_report",
    "data.making",
    "data.loading",
    # windows to futures
    "parent",
    "training",
    "tokenizer",
    "sequence",
    "transformer",
    "checkpoint",
    "imagination",
    "heads",
    # futures to use
    "evaluation",
    "evaluation.report",
    "policies",
    "control",
    "synthesis",
    "serving",
    "serving.play",
    "hub",
    # which size, how much data
    "flops",
    "scaling.quantities",
    "scaling.runs",
    "scaling.law",
    "scaling.report",
    "scaling.sweep",
    # the command line
    "cli",
    "cli.training",
    "cli.verbs",
)
"""The rooms. A file belongs to the longest name here that leads to it, and imports only from its
own room and from rooms above; readers of formats do not import each other."""

FORMATS = tuple(
    f"data.readers.{name}" for name in ("lerobot", "hdf5", "videos", "rlds", "dreamer", "simulator")
)

FRONT_DOORS = ("__init__.py", "__main__.py")
"""Of the package itself: they lead to parts and are imported by them for the version only."""

FOUND_ONLY_IN = {
    # library: files that may import it, as patterns relative to the package
    "lightning": ("**/training.py", "**/datamodule.py", "cli/**/*.py"),
    "vector_quantize_pytorch": ("tokenizer/quantizer.py",),
    "rich": ("cli/**/*.py",),
    "huggingface_hub": ("hub/transfer.py",),
    "starlette": ("serving/app.py", "serving/play/app.py", "serving/play/player.py"),
    "uvicorn": ("serving/server.py",),
    "pytorch_lightning": (),  # the old name makes a second, incompatible copy of every class
}


def imported_modules(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full name of what is imported) of every import in a file, in functions too.

    ``from tokenwm.data import episode`` is ``tokenwm.data.episode``; relative imports are resolved.
    """
    parents = (package.name, *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def room_of(module: str) -> str | None:
    """Return the room of a name, both without the package's: of ``data.readers.base.SOURCES``,
    ``data.readers``."""
    names = module.split(".")
    for length in range(len(names), 0, -1):
        if ".".join(names[:length]) in ORDER:
            return ".".join(names[:length])
    return None


def module_name(path: Path, package: Path) -> str:
    """Return the dotted name of a file, without the package's."""
    return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")


def direction_violations(package: Path) -> list[str]:
    """Return one line per import that points down in ``ORDER``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.parent == package and path.name in FRONT_DOORS:
            continue
        if path.name == "__init__.py" and not path.read_text():
            continue
        room = room_of(module_name(path, package))
        if room is None:
            found.append(f"{path}: has no place in the order {ORDER}")
            continue
        for line, module in imported_modules(path, package):
            other = room_of(module.removeprefix(f"{package.name}."))
            if not module.startswith(f"{package.name}.") or other is None or other == room:
                continue
            if ORDER.index(other) > ORDER.index(room) or {room, other} <= set(FORMATS):
                found.append(f"{path}:{line}: {room} imports {module}, which is below it")
    return found


def _module_and_parent(name: str) -> tuple[str, str]:
    return name, name.rpartition(".")[0]


def modules_in_circles(package: Path) -> list[str]:
    """Return the modules that import themselves by way of others, ``TYPE_CHECKING`` or not."""
    paths = {module_name(path, package): path for path in package.rglob("*.py")}
    imports = {
        name: {
            target
            for _, module in imported_modules(path, package)
            for target in _module_and_parent(module.removeprefix(f"{package.name}."))
            if target in paths and target != name
        }
        for name, path in paths.items()
        if path.read_text() and path.name not in FRONT_DOORS
    }
    while True:  # what leads to what, over any number of steps
        farther = {
            name: targets.union(*(imports.get(target, set()) for target in targets))
            for name, targets in imports.items()
        }
        if farther == imports:
            break
        imports = farther
    return sorted(name for name, targets in imports.items() if name in targets)


def library_violations(package: Path) -> list[str]:
    """Return one line per import of a library outside the files it is kept to."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for line, module in imported_modules(path, package):
            library = module.split(".")[0]
            if library not in FOUND_ONLY_IN:
                continue
            patterns = FOUND_ONLY_IN[library]
            allowed = {other for pattern in patterns for other in package.glob(pattern)}
            if path not in allowed:
                where = ", ".join(patterns) or "nowhere"
                found.append(f"{path}:{line}: {library} may be imported in: {where}")
    return found


def test_imports_point_up() -> None:
    assert direction_violations(PACKAGE) == []


def test_no_circles_not_even_for_types() -> None:
    assert modules_in_circles(PACKAGE) == []


def test_libraries_stay_where_they_belong() -> None:
    assert library_violations(PACKAGE) == []


def test_no_drawer_for_odds_and_ends() -> None:
    names = {"utils", "util", "helpers", "misc", "common"}
    assert [str(path) for path in PACKAGE.rglob("*") if path.stem in names] == []


def test_docstrings_say_first_what_a_thing_is() -> None:
    """One that begins with a question word leaves the reader to guess what the thing is."""
    begin = r'^ *"""(?:What|Where|When|Which|Whose|Why|How|Whether|Of|As|The same)\b.*'
    riddles = re.compile(begin, re.MULTILINE)
    assert riddles.findall('class A:\n    """What is kept of one."""') == [
        '    """What is kept of one."""'
    ]
    files = PACKAGE.rglob("*.py")
    assert [(path.name, line) for path in files for line in riddles.findall(path.read_text())] == []


@pytest.mark.parametrize("folder", ["tokenwm", "configs"])
def test_nothing_depends_on_the_shared_folder(folder: str) -> None:
    mentions = [
        str(path)
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".yml", ".json", ".toml", ".html"}
        and ("../shared" in path.read_text() or "/work/" in path.read_text())
    ]
    assert mentions == []


def test_tools_are_not_imported_by_the_package() -> None:
    outside = {"tools", "tests", "configs"}
    assert [
        f"{path}:{line}"
        for path in PACKAGE.rglob("*.py")
        for line, module in imported_modules(path, PACKAGE)
        if module.split(".")[0] in outside
    ] == []


# The checks themselves, on small packages that break the rules.


def make_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "tokenwm"
    for name, source in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    return package


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data/loading/windows.py", "from tokenwm.tokenizer.frames import FrameTokenizer"),
        ("data/loading/windows.py", "import tokenwm.cli.main"),
        ("data/loading/windows.py", "from tokenwm import tokenizer"),
        ("data/loading/windows.py", "from ...tokenizer import frames"),
        ("data/loading/windows.py", "from ... import tokenizer"),
        ("data/readers/base.py", "from ...tokenizer import frames"),
        (
            "transformer/training.py",
            "def sample():\n    import tokenwm.imagination.token_world_model",
        ),
        ("checkpoint.py", "from tokenwm.imagination import rollout"),
        ("errors.py", "from tokenwm.shapes import check_shape"),
        ("data/storage/folder.py", "from tokenwm.data.shards import manifest"),
        ("data/readers/base.py", "from tokenwm.data.readers.columns import arrays"),
        ("data/readers/rlds/reader.py", "from tokenwm.data.readers.hdf5 import hdf5"),
        ("scaling/law/fit.py", "import tokenwm.scaling.sweep.plan"),
        ("surprise/part.py", "x = 1"),
    ],
)
def test_an_import_from_below_is_found(tmp_path: Path, name: str, source: str) -> None:
    assert len(direction_violations(make_package(tmp_path, {name: source}))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "data/loading/windows.py",
            "from tokenwm.shapes import check_shape\nfrom . import episode",
        ),
        ("data/readers/base.py", "from ..episode import Episode"),
        ("cli/main.py", "from tokenwm import __version__\nimport tokenwm.evaluation.evaluate"),
        ("__init__.py", "from tokenwm.imagination.token_world_model import load"),
        ("evaluation/evaluate.py", "from tokenwm.checkpoint import load_checkpoint\nimport numpy"),
    ],
)
def test_an_import_from_above_is_not(tmp_path: Path, name: str, source: str) -> None:
    assert direction_violations(make_package(tmp_path, {name: source})) == []


@pytest.mark.parametrize(
    ("name", "source", "num_violations"),
    [
        ("transformer/model.py", "import lightning.pytorch", 1),
        ("imagination/token_world_model.py", "def f():\n    from lightning import Trainer", 1),
        ("cli/verbs/world_model.py", "import lightning\nimport rich.progress", 0),
        ("transformer/training.py", "import lightning", 0),
        ("data/loading/datamodule.py", "import lightning", 0),
        ("cli/verbs/world_model.py", "import pytorch_lightning", 1),
        ("tokenizer/frames.py", "from vector_quantize_pytorch import FSQ", 1),
        ("tokenizer/quantizer.py", "from vector_quantize_pytorch import FSQ", 0),
        ("data/making/prepare.py", "from rich.progress import track", 1),
    ],
)
def test_a_library_out_of_place_is_found(
    tmp_path: Path, name: str, source: str, num_violations: int
) -> None:
    package = make_package(tmp_path, {name: source})
    assert len(library_violations(package)) == num_violations
