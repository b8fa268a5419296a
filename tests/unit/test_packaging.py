"""What `pip install` is told: every library the package imports is asked for."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CHOSEN_BY_THE_USER = {
    "ale_py",
    "google_crc32c",
    "gym_pusht",
    "gymnasium",
    "h11",
    "h5py",
    "huggingface_hub",
    "lpips",
    "ray",
    "scipy",
    "shtab",
    "stable_baselines3",
    "starlette",
    "submitit",
    "uvicorn",
    "websockets",
}
"""Imported inside functions, from optional extras."""


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required_names(requirements: list[str]) -> set[str]:
    return {normalized(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in requirements}


def imported_libraries() -> set[str]:
    found: set[str] = set()
    for path in (REPOSITORY / "tokenwm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"tokenwm"}


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = required_names(project["dependencies"])
    packages = importlib.metadata.packages_distributions()
    missing = {
        library
        for library in imported_libraries()
        - CHOSEN_BY_THE_USER
        - {"google", "rerun"}  # protobuf and rerun-sdk, chosen too
        if declared.isdisjoint(map(normalized, packages[library]))
    }
    assert missing == set()
    extras = project["optional-dependencies"].values()
    optional = set().union(*(required_names(lines) for lines in extras))
    assert {normalized(name) for name in CHOSEN_BY_THE_USER} <= optional


def test_every_declared_library_has_one_exact_version() -> None:
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    project, extras = pyproject["project"], pyproject["project"]["optional-dependencies"]
    asked_for = [*project["dependencies"], *extras["pusht"], *extras["dev"]]
    asked_for += pyproject["build-system"]["requires"]
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = required_names([line for line in lines if "==" in line])
    assert required_names(asked_for) - pinned == set()


def test_what_the_package_offers_can_be_found_by_tab() -> None:
    import tokenwm

    assert {"load", "__version__"} <= set(dir(tokenwm))
