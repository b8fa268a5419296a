"""The dispatcher: help at once, verbs found, errors as one line, Ctrl-C with a word of comfort."""

import errno
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenwm
from tokenwm.cli import main as cli
from tokenwm.errors import RecipeError

REPOSITORY = Path(__file__).parents[3]
RunVerb = Callable[[list[str]], int]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunVerb], None]:
    """Return a function that makes ``practise`` a verb which runs what it is given."""

    def install(run: RunVerb) -> None:
        module = types.ModuleType(cli.module_of("practise"))
        module.main = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(cli, "VERBS", {"practise": "practise a verb"})

    return install


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_every_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, summary in cli.VERBS.items():
        assert any(line.split() == [name, *summary.split()] for line in lines), name
    assert max(map(len, lines)) <= 100


def test_the_verbs_are_the_documented_ones() -> None:
    assert set(cli.VERBS) == {
        "export-arrays",
        "export-lerobot",
        "synthesize",
        "inspect",
        "prepare",
        "verify-shards",
        "tokenizer",
        "tokenize",
        "world-model",
        "heads",
        "imagine",
        "evaluate",
        "control",
        "serve",
        "play",
        "sweep",
        "quickstart",
        "push",
        "pull",
        "info",
        "report",
        "completion",
    }
    for name in cli.VERBS:
        assert cli.module_of(name) == f"tokenwm.cli.verbs.{name.replace('-', '_')}"


@pytest.mark.parametrize("name", sorted(cli.VERBS))
def test_every_verb_has_its_module_with_a_main(name: str) -> None:
    module_path = REPOSITORY.joinpath(*cli.module_of(name).split(".")).with_suffix(".py")
    assert "\ndef main(" in module_path.read_text()


@pytest.mark.parametrize("argv", [["--version"], ["-V"]])
def test_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    assert capsys.readouterr().out == f"tokenwm {tokenwm.__version__}\n"


def test_arguments_default_to_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tokenwm", "--version"])
    assert cli.main() == 0
    assert tokenwm.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_verb_gets_the_rest_and_gives_the_exit_code(
    exit_code: int, verb: Callable[[RunVerb], None]
) -> None:
    seen: list[list[str]] = []

    def run(argv: list[str]) -> int:
        seen.append(argv)
        return exit_code

    verb(run)
    assert cli.main(["practise", "fit", "--help"]) == exit_code
    assert seen == [["fit", "--help"]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("worldmodel", "did you mean 'world-model'?"),
        ("tokenise", "did you mean 'tokenize'?"),
        ("prepar", "did you mean 'prepare'?"),
        ("zzz", "verbs: quickstart, inspect"),
        ("--set", "verbs: "),
    ],
)
def test_an_unknown_verb_is_told_the_nearest(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"unknown verb '{given}'" in captured.err
    assert said in captured.err


def raise_recipe_error(argv: list[str]) -> int:
    raise RecipeError("recipe.yaml: unknown key 'nmae'; did you mean 'name'?")


def test_a_users_error_is_one_line(
    verb: Callable[[RunVerb], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
    verb(raise_recipe_error)
    assert cli.main(["practise"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: recipe.yaml: unknown key 'nmae'; did you mean 'name'?\n"


def test_the_traceback_comes_on_request(
    verb: Callable[[RunVerb], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    verb(raise_recipe_error)
    assert cli.main(["practise"]) == 1
    message = capsys.readouterr().err
    assert "Traceback (most recent call last)" in message
    assert "raise_recipe_error" in message
    assert message.splitlines()[-1].startswith("error: recipe.yaml")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(
    number: int, verb: Callable[[RunVerb], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it arises: not every file is written by tokenwm itself."""

    def run(argv: list[str]) -> int:
        raise OSError(number, os.strerror(number), "/tmp/x", None, "runs/x/last.ckpt")

    verb(run)
    assert cli.main(["practise"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {os.strerror(number)} (runs/x/last.ckpt); free space")
    assert message.count("\n") == 1


def test_other_failures_of_the_system_keep_their_traceback(verb: Callable[[RunVerb], None]) -> None:
    def run(argv: list[str]) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    verb(run)
    with pytest.raises(PermissionError):
        cli.main(["practise"])


def test_a_bug_keeps_its_traceback(verb: Callable[[RunVerb], None]) -> None:
    def run(argv: list[str]) -> int:
        raise ZeroDivisionError("a bug, not a user's error")

    verb(run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["practise"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["quickstart"], "finished stages and the last checkpoint are kept"),
        (
            ["tokenizer", "fit", "--config", "x.yaml"],
            "the last checkpoint, if there is one yet, is kept",
        ),
        (["world-model", "fit"], "the last checkpoint, if there is one yet, is kept"),
        (["world-model", "test"], "nothing of this run is kept; the same command begins anew"),
        (["prepare", "recipe.yaml"], "finished shards are kept; run the same command again"),
        (["tokenize", "fit"], "finished shards are kept; run the same command again"),
        (["imagine"], "nothing of this run is kept"),
        (["evaluate"], "nothing of this run is kept"),
    ],
)
def test_ctrl_c_says_what_is_kept(
    argv: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(argv: list[str]) -> int:
        raise KeyboardInterrupt

    module = types.ModuleType(cli.module_of(argv[0]))
    module.main = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "check_arguments", lambda verb, argv: None)  # which are not all there
    assert cli.main(argv) == 130
    message = capsys.readouterr().err
    assert message.startswith(f"\ninterrupted: {said}")
    assert ("run the same command again to continue" in message) == ("nothing" not in said)


@pytest.mark.parametrize("module", ["tokenwm", "tokenwm.cli.main"])
def test_both_modules_run(module: str) -> None:
    finished = run_python("-m", module, "nonsense")
    assert finished.returncode == 2
    assert "unknown verb 'nonsense'" in finished.stderr


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    heavy = ["torch", "lightning", "rich", "numpy", "omegaconf", "jsonargparse", "av", "pyarrow"]
    finished = run_python(
        "-c",
        "import sys\n"
        "from tokenwm.cli.main import main\n"
        "code = main(['--help'])\n"
        f"print('HEAVY', sorted(set({heavy}) & set(sys.modules)))\n"
        "sys.exit(code)",
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "HEAVY []"


def test_load_is_looked_up_on_first_use() -> None:
    finished = run_python(
        "-c",
        "import sys, types\n"
        "import tokenwm\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "stand_in = types.ModuleType('tokenwm.imagination.token_world_model')\n"
        "stand_in.load = lambda path, device='cpu': (path, device)\n"
        "sys.modules['tokenwm.imagination.token_world_model'] = stand_in\n"
        "print(tokenwm.load('runs/x'))",
    )
    assert finished.stdout.strip() == "('runs/x', 'cpu')", finished.stderr


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        tokenwm.lode  # noqa: B018


@pytest.mark.parametrize("words", [["--help"], ["--version"]], ids=" ".join)
def test_it_ends_quietly_where_nobody_reads_on(words: list[str]) -> None:
    """As in ``tokenwm --help | head -3``."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "tokenwm", *words]
        done = subprocess.run(
            command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
