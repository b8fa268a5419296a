"""Pushing checkpoints and datasets to the Hugging Face hub, and pulling them."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenwm.checkpoint import (
    CONFIG,
    FILES,
    PROVENANCE,
    VOCABULARY,
    load_tokenizer,
    model_folder,
    read_provenance,
)
from tokenwm.data.shards.manifest import MANIFEST_NAME, Manifest
from tokenwm.data.shards.verify import find_problems
from tokenwm.data.storage.atomic import make_folder_atomically
from tokenwm.errors import TokenwmError
from tokenwm.heads.folder import HEAD, HEADS, load_head
from tokenwm.heads.folder import WEIGHTS as HEAD_WEIGHTS
from tokenwm.hub.card import make_card
from tokenwm.hub.private import check_public, without_private
from tokenwm.imagination.token_world_model import load

CARD, METRICS = "README.md", "metrics.json"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
NAME = re.compile(
    r"(heads/[\w-]+/|[\w-][\w.-]*/)?[\w-][\w.-]*\.(tar|json|yaml|npy|md|safetensors)", re.ASCII
)
"""Files that are pushed and pulled; others, such as code, pages and pickles, stay put."""
MAX_FILES = 100_000
PIECE_BYTES = 2**20
HUB_LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "requests")
"""Libraries that raise errors of the hub or the network: huggingface_hub and its HTTP clients."""


def push(path: Path, repository: str, *, report: Path | None = None, private: bool = False) -> str:
    """Publish a checkpoint or a dataset with a card; returns its address.

    Args:
        path: A checkpoint's, run's or dataset's folder.
        repository: ``owner/name``; made if it is not there.
        report: Folder of the model's report.
        private: Whether a repository that is made is private.

    Raises:
        TokenwmError: It cannot be read or published, or something private is left in it.
    """
    _check_repository(repository)
    kind = "dataset" if (path / MANIFEST_NAME).exists() else "model"
    files: Mapping[str, bytes | Path]
    if kind == "dataset":
        files, provenance = _dataset_files(path)
    else:
        files, provenance = _model_files(model_folder(path)), read_provenance(path)
    metrics = None if report is None else _read_metrics(report)
    files = {**files, CARD: make_card(kind, repository, provenance, metrics).encode()}
    with _hub() as (hub, api):
        for name, content in files.items():
            if not name.endswith((".tar", ".safetensors", ".npy")):
                data = content if isinstance(content, bytes) else content.read_bytes()
                check_public(name, data, hub.get_token())
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        info = api.create_commit(
            repository, operations, commit_message="tokenwm push", repo_type=kind
        )
    return str(info.commit_url)


def _others(folder: Path) -> list[str]:
    """Files in a folder that no pull has brought: they would be lost."""
    files = [path for path in folder.rglob("*") if not path.is_dir()] if folder.is_dir() else []
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    return [name for name in names if not NAME.fullmatch(name)]


def pull(
    repository: str,
    out: Path,
    *,
    kind: str = "model",
    revision: str | None = None,
    max_bytes: int = 20 * 2**30,
    overwrite: bool = False,
) -> str:
    """Fetch a checkpoint or a dataset; it appears under ``out`` whole and checked, or not at all.

    Args:
        repository: ``owner/name``.
        out: Folder to make.
        kind: ``model`` or ``dataset``.
        revision: Branch, tag or commit; None: the newest.
        max_bytes: Most bytes that are fetched.
        overwrite: Replace a checkpoint or a dataset that is there.

    Returns:
        The commit that was fetched.

    Raises:
        TokenwmError: It cannot be fetched, is too large, or is not what its hashes say.
    """
    _check_repository(repository)
    mark = MANIFEST_NAME if kind == "dataset" else CONFIG
    if out.exists() and not (overwrite and (out / mark).is_file() and not _others(out)):
        others = _others(out) if overwrite else []
        holds = f" and holds {', '.join(others[:3])}" if others else ""
        raise TokenwmError(
            f"{out} exists{holds}; choose another --out, or replace a {kind} of tokenwm, and "
            "nothing else, with --overwrite"
        )
    with _hub() as (hub, api):
        info = api.repo_info(repository, revision=revision, repo_type=kind, files_metadata=True)
        listed = {file.rfilename: file for file in info.siblings or []}
        for name in listed:
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise TokenwmError(f"{repository} lists {name!r}, a path out of its folder")
        wanted = {name: file for name, file in listed.items() if NAME.fullmatch(name)}
        sizes = [file.size for file in wanted.values()]
        if any(size is None for size in sizes) or len(sizes) > MAX_FILES or sum(sizes) > max_bytes:
            raise TokenwmError(
                f"{repository} has {len(sizes)} files of {sum(filter(None, sizes))} bytes; at most "
                f"{MAX_FILES} files of {max_bytes} bytes are pulled (--max-gigabytes)"
            )
        if mark not in wanted:
            raise TokenwmError(f"{repository} holds no {kind} of tokenwm")
        with make_folder_atomically(out) as partial:
            for name, file in wanted.items():
                path = Path(
                    hub.hf_hub_download(
                        repository,
                        name,
                        repo_type=kind,
                        revision=info.sha,
                        local_dir=partial,
                        endpoint=api.endpoint,
                    )
                )
                _check_file(path, file)
            shutil.rmtree(partial / ".cache", ignore_errors=True)
            _check_whole(partial, kind)
    return str(info.sha)


def _model_files(folder: Path) -> dict[str, bytes | Path]:
    if not (folder / CONFIG).exists():
        raise TokenwmError(f"{folder} holds neither {MANIFEST_NAME} nor {CONFIG}: nothing to push")
    names = [*FILES]
    if (folder / VOCABULARY).exists():
        names += [VOCABULARY, *(f"tokenizer/{name}" for name in FILES)]
    for head in sorted(folder.glob(f"{HEADS}/*/{HEAD}")):
        names += [f"{HEADS}/{head.parent.name}/{name}" for name in (HEAD, HEAD_WEIGHTS)]
    return {
        name: _public_json(folder / name) if name.endswith((PROVENANCE, HEAD)) else folder / name
        for name in names
    }


def _dataset_files(folder: Path) -> tuple[dict[str, bytes | Path], Mapping[str, Any]]:
    manifest = Manifest.load(folder)
    files: dict[str, bytes | Path] = {shard.path: folder / shard.path for shard in manifest.shards}
    digests = {name: digest for name, digest in manifest.files.items() if NAME.fullmatch(name)}
    for name in digests:
        files[name] = folder / name
        if name.endswith(".json"):
            content = files[name] = _public_json(folder / name)
            digests[name] = hashlib.sha256(content).hexdigest()
    for figures in manifest.statistics.values():
        for figure in figures.values():
            if isinstance(figure, Mapping) and "file" in figure:
                files[figure["file"]] = folder / figure["file"]
    public = dataclasses.replace(
        manifest,
        files=digests,
        provenance=without_private(dict(manifest.provenance)),
        extra=without_private(dict(manifest.extra)),
    )
    files[MANIFEST_NAME] = _dumped(public)
    return files, public.provenance


def _dumped(manifest: Manifest) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        manifest.save(folder)
        return (Path(folder) / MANIFEST_NAME).read_bytes()


def _public_json(path: Path) -> bytes:
    content = path.read_bytes()
    value = json.loads(content)
    public = without_private(value)
    return content if public == value else json.dumps(public, indent=2).encode()


def _read_metrics(report: Path) -> dict[str, Any]:
    path = report / METRICS if report.is_dir() else report
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TokenwmError(f"{path} cannot be read: {error}; give the report's folder") from error
    return values


def _check_repository(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise TokenwmError(f"{repository!r} is no repository of the hub; give OWNER/NAME")


def _check_file(path: Path, file: Any) -> None:
    """Compare a file with the hash that the hub lists: SHA-256, or git's of small ones."""
    size = path.stat().st_size
    digest = hashlib.sha256() if file.lfs else hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            digest.update(piece)
    if size != file.size or digest.hexdigest() != (file.lfs.sha256 if file.lfs else file.blob_id):
        raise TokenwmError(f"{file.rfilename} is not what the hub lists; pull again")


def _check_whole(folder: Path, kind: str) -> None:
    if kind == "dataset":
        if problems := find_problems(folder, num_workers=1):
            first = problems[0]
            raise TokenwmError(
                f"{len(problems)} problems in what was pulled, first {first.file}: {first.message}"
            )
    elif (folder / VOCABULARY).exists():
        model = load(folder)
        for head in folder.glob(f"{HEADS}/*/"):
            load_head(model, head.name)
    else:
        load_tokenizer(folder)


@contextlib.contextmanager
def _hub() -> Iterator[tuple[Any, Any]]:
    """Yield huggingface_hub and its API; its errors become one line without a token."""
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError as error:
        raise TokenwmError(
            f"push and pull need huggingface_hub ({error}); pip install 'tokenwm[hub]'"
        ) from error
    try:
        yield hub, hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="tokenwm")
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in HUB_LIBRARIES:
            raise
        text = without_private(" ".join(str(error).split()))
        raise TokenwmError(f"the hub: {text}; `hf auth login` if it asks who you are") from error
