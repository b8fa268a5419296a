"""Which code a model was trained by: told where it is known, and never in the way."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tokenwm.cli.training.model_exports import code_revision

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    git(tmp_path, "tag", "v1")
    return tmp_path


@needs_git
def test_the_revision_is_the_commit_and_whether_files_differ(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert code_revision(checkout) == commit
    (checkout / "code.py").write_text("2")
    assert code_revision(checkout) == f"{commit}-dirty"


@needs_git
def test_code_installed_below_another_repository_is_not_of_its_commit(checkout: Path) -> None:
    (checkout / ".venv" / "site-packages").mkdir(parents=True)
    assert code_revision(checkout / ".venv" / "site-packages") is None


def test_no_git_and_no_checkout_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_revision(tmp_path) is None
    (tmp_path / ".git").write_text("gitdir: nowhere")  # a worktree whose repository is gone
    assert code_revision(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_revision(tmp_path) is None
    program = tmp_path / "git"
    program.write_bytes(b"#!/bin/sh\nprintf '\\377'\n")  # no UTF-8
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert code_revision(tmp_path) is None
