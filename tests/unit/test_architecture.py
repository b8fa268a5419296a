"""The picture of ``docs/architecture.md`` as a test: who may import whom, read off the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "tokenwm"

ORDER = (
    "errors",
    "shapes",
    "allocator",
    "throughput",
    "norm",
    "resume",
    "data",
    "training",
    "tokenizer",
    "sequence",
    "transformer",
    "checkpoint",
    "imagination",
    "uses",
    "scaling",
    "cli",
)
"""A part imports only itself and parts to its left."""

FRONT_DOORS = ("__init__.py", "__main__.py")
"""Of the package itself: they lead to parts and are imported by them for the version only."""

FOUND_ONLY_IN = {
    # library: files that may import it, as patterns relative to the package
    "lightning": ("**/training.py", "**/datamodule.py", "cli/**/*.py"),
    "vector_quantize_pytorch": ("tokenizer/quantizer.py",),
    "rich": ("cli/**/*.py",),
    "pytorch_lightning": (),  # the old name makes a second, incompatible copy of every class
}


def imported_modules(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full module name) of every import in a file, inside functions too.

    ``from tokenwm import data`` counts as ``tokenwm.data``; relative imports are resolved.
    """
    parents = (package.name, *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            if module == package.name:
                for alias in node.names:
                    yield node.lineno, f"{module}.{alias.name}"
            else:
                yield node.lineno, module


def part_of(path: Path, package: Path) -> str:
    """Return the part a file belongs to: its folder or module right under the package."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def direction_violations(package: Path) -> list[str]:
    """Return one line per import that points to the right in ``ORDER``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.parent == package and path.name in FRONT_DOORS:
            continue
        part = part_of(path, package)
        if part not in ORDER:
            found.append(f"{path}: '{part}' has no place in the order {ORDER}")
            continue
        for line, module in imported_modules(path, package):
            names = module.split(".")
            if names[0] != package.name or len(names) == 1 or names[1] not in ORDER:
                continue
            if ORDER.index(names[1]) > ORDER.index(part):
                found.append(f"{path}:{line}: {part} imports {module}, which is to its right")
    return found


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


def test_imports_point_to_the_left() -> None:
    assert direction_violations(PACKAGE) == []


def test_libraries_stay_where_they_belong() -> None:
    assert library_violations(PACKAGE) == []


def test_no_drawer_for_odds_and_ends() -> None:
    names = {"utils", "util", "helpers", "misc", "common"}
    assert [str(path) for path in PACKAGE.rglob("*") if path.stem in names] == []


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
        ("data/loader.py", "from tokenwm.tokenizer.frames import FrameTokenizer"),
        ("data/loader.py", "import tokenwm.cli.main"),
        ("data/loader.py", "from tokenwm import tokenizer"),
        ("data/loader.py", "from ..tokenizer import frames"),
        ("data/loader.py", "from .. import tokenizer"),
        ("data/sources/reader.py", "from ...tokenizer import frames"),
        ("transformer/training.py", "def sample():\n    import tokenwm.imagination.rollout"),
        ("checkpoint.py", "from tokenwm.imagination import rollout"),
        ("errors.py", "from tokenwm.shapes import check_shape"),
        ("surprise/part.py", ""),
    ],
)
def test_an_import_to_the_right_is_found(tmp_path: Path, name: str, source: str) -> None:
    assert len(direction_violations(make_package(tmp_path, {name: source}))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data/loader.py", "from tokenwm.shapes import check_shape\nfrom . import episode"),
        ("data/sources/reader.py", "from ..episode import Episode"),
        ("cli/main.py", "from tokenwm import __version__\nimport tokenwm.uses.evaluate"),
        ("__init__.py", "from tokenwm.imagination.rollout import load"),
        ("uses/evaluate.py", "from tokenwm.checkpoint import load_checkpoint\nimport numpy"),
    ],
)
def test_an_import_to_the_left_is_not(tmp_path: Path, name: str, source: str) -> None:
    assert direction_violations(make_package(tmp_path, {name: source})) == []


@pytest.mark.parametrize(
    ("name", "source", "num_violations"),
    [
        ("transformer/model.py", "import lightning.pytorch", 1),
        ("imagination/rollout.py", "def f():\n    from lightning import Trainer", 1),
        ("cli/world_model.py", "import lightning\nimport rich.progress", 0),
        ("transformer/training.py", "import lightning", 0),
        ("data/datamodule.py", "import lightning", 0),
        ("cli/world_model.py", "import pytorch_lightning", 1),
        ("tokenizer/frames.py", "from vector_quantize_pytorch import FSQ", 1),
        ("tokenizer/quantizer.py", "from vector_quantize_pytorch import FSQ", 0),
        ("data/prepare.py", "from rich.progress import track", 1),
    ],
)
def test_a_library_out_of_place_is_found(
    tmp_path: Path, name: str, source: str, num_violations: int
) -> None:
    package = make_package(tmp_path, {name: source})
    assert len(library_violations(package)) == num_violations
