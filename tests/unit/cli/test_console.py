"""Text of strangers is shown as it is, whatever verb shows it."""

import ast
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import tokenwm.cli
from tests.unit.data.readers.odd_datasets import FORMATS, make_rows
from tokenwm.cli import main as cli
from tokenwm.cli.console import printable, say
from tokenwm.cli.verbs.prepare import print_summary
from tokenwm.cli.verbs.verify_shards import print_problems
from tokenwm.data.shards.manifest import Excluded, Manifest
from tokenwm.data.shards.verify import Problem

HOSTILE = "ümlaut [red]x[/blue] \x1b[2J\r\n"
SHOWN = "ümlaut [red]x[/blue] \ufffd[2J\ufffd\ufffd"


def show_text(console: Console) -> None:
    console.print(printable(HOSTILE))


def say_text(console: Console) -> None:
    say(console, HOSTILE.rstrip("\n") + "\ufffd")


def show_problem(console: Console) -> None:
    print_problems(console, [Problem(file=HOSTILE, message="is missing")])


def show_what_was_left_out(console: Console) -> None:
    manifest = Manifest(
        kind="frames",
        name="strange",
        control_rate=10.0,
        features={},
        shards=[],
        episodes=[],
        excluded=[Excluded(key="e", reason=HOSTILE)],
    )
    print_summary(console, manifest)


@pytest.mark.parametrize("show", [show_text, say_text, show_problem, show_what_was_left_out])
def test_no_markup_and_no_control_characters(show: Callable[[Console], None]) -> None:
    written = io.StringIO()
    show(Console(file=written, width=200))
    assert SHOWN in written.getvalue()


def test_only_tables_are_printed_without_the_helper() -> None:
    """A path or a name in `console.print(f"…")` would be read as markup, and may raise."""
    for path in sorted(Path(tokenwm.cli.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.endswith(("onsole.print", "onsole().print")) and path.name != "console.py":
                assert isinstance(node.args[0], ast.Name), f"{path.name}:{node.lineno}"
            if called == "TextColumn" and "{" in ast.unparse(node.args[0]):
                assert "markup=False" in ast.unparse(node), f"{path.name}:{node.lineno}"
            if called in ("Table", "Text.from_markup") and "title=f" in ast.unparse(node):
                shown = ast.unparse(node).partition("title=f")[2]
                assert not any(word in shown for word in (".name", ".key", "path", "data_name"))


@pytest.mark.parametrize(
    "name", ["data[/x]", "[red]", "caf\udce9", "a\x1b[2Jb", "[link=x]", ":smile:"]
)
def test_folders_of_any_name(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path("data" if "\udce9" in name else name)  # a recipe is UTF-8
    source.mkdir(parents=True)
    path = FORMATS["videos_npz"].write(source, [make_rows(seed) for seed in range(4)])
    out = f"out {name}"
    made = Path(f"{name}.yaml".replace("/", "_"))
    assert cli.main(["inspect", str(path), "--recipe", str(made)]) == 0
    assert cli.main(["prepare", str(made), "--out", out, "--workers", "0"]) == 0
    assert cli.main(["prepare", str(made), "--out", out, "--workers", "0"]) == 0
    assert cli.main(["verify-shards", out]) == 0
    (Path(out) / "train-000000.tar").write_bytes(b"x")
    assert cli.main(["verify-shards", out]) == 1
    assert cli.main(["prepare", str(made), "--out", out, "--workers", "0"]) == 1
    assert cli.main(["inspect", f"missing {name}"]) == 1
    printed = capfd.readouterr()
    shown = "".join(c if c.isprintable() else "\ufffd" for c in out)
    assert shown in printed.out and shown in printed.err
    assert "\x1b[2J" not in printed.out + printed.err
