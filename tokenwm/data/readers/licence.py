"""The licence that recordings state, where people and the Hugging Face hub write it."""

from pathlib import Path

import yaml

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
MOST_TEXT = 100
"""Characters of a licence's name."""


def stated_licence(path: Path) -> str:
    """The licence that a folder states; empty if it states none, or is a file.

    In the header of ``README.md``: the name of the licence, else its short form; else the first
    line of a file of the licence.
    """
    if not path.is_dir():
        return ""
    header, behind, _ = _beginning(path / "README.md").partition("\n---")
    if header.startswith("---") and behind:
        try:
            about = yaml.safe_load(header)
        except (yaml.YAMLError, RecursionError):
            about = None
        stated = (
            about.get("license_name") or about.get("license") if isinstance(about, dict) else ""
        )
        if isinstance(stated, str) and stated.strip():
            return stated.strip()[:MOST_TEXT]
    for name in LICENCE_FILES:
        lines = [line.strip() for line in _beginning(path / name).splitlines()]
        if any(lines):
            return next(line for line in lines if line)[:MOST_TEXT]
    return ""


def _beginning(file: Path) -> str:
    if not file.is_file() or file.is_symlink():
        return ""
    with file.open(encoding="utf-8", errors="replace") as content:
        return content.read(10_000)
