"""Pushing to and pulling from a hub on this machine: what comes back, what is never let through."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.moving_square import make_model, save_model
from tests.small_datasets import write_frame_shards
from tests.unit.hub.stand_in import StandIn, entry, stand_in
from tokenwm.checkpoint import load_world_model
from tokenwm.cli.main import main
from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import TokenwmError
from tokenwm.heads.folder import load_head, save_head
from tokenwm.heads.head import Head, HeadConfig, Meaning
from tokenwm.hub.card import make_card
from tokenwm.hub.private import without_private
from tokenwm.hub.transfer import pull, push
from tokenwm.imagination.token_world_model import load

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    with stand_in() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        yield server


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("hub") / "model", make_model())
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance |= {
        "data": "/home/ada/secret project/frames",
        "data_name": "square",
        "data_provenance": {
            "licence": "MIT",
            "source": f"https://ada:{TOKEN}@example.org/square?signature=abc",
        },
        "note": f"read from ~/lab/square.tar with {TOKEN}",
        "steps": 7,
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    config = HeadConfig(inputs="features", input_shape=(4,), num_outputs=1)
    head = Head(config, Meaning(names=("x",), values={"data": "/home/ada/lab"}))
    save_head(load(folder), "readout", head, {"data": "/home/ada/secret project/frames"})
    return folder


METRICS: dict[str, Any] = {
    "horizons": [1, 2, 3, 4, 5],
    "control_rate": 10.0,
    "num_episodes": 6,
    "intervals": {"min_episodes_for_claims": 8},
    "psnr": {
        "model": {"mean": [30.0, 29.0, 28.0, 27.0, None]},
        "persistence": {"mean": [28.0, 26.0, 25.0, 24.0, 23.0]},
    },
    "psnr_changed": {"model": {"mean": [17.0, 16.0, 15.0, 14.0, 13.0]}},
}


def test_a_checkpoint_comes_back_as_it_was_and_with_a_card(
    hub: StandIn, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    report = ["--report", str(tmp_path), "--private"]
    assert main(["push", str(checkpoint), "robot/square", *report]) == 0
    assert hub.created["name"] == "square"
    pulling = ["pull", "robot/square", "--out", str(tmp_path / "pulled")]
    assert main(pulling) == 0
    assert "every hash is right" in capsys.readouterr().out
    (tmp_path / "pulled" / "config.yaml").write_text("damaged")
    assert main(pulling) == 1
    assert main([*pulling, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "pulled")
    before, after = load_world_model(checkpoint), load_world_model(tmp_path / "pulled")
    weights = zip(before.world_model.parameters(), after.world_model.parameters(), strict=True)
    assert all((one == other).all() for one, other in weights)
    assert after.provenance["steps"] == 7
    kept, pulled = (
        load_head(load(folder), "readout").state_dict()
        for folder in (checkpoint, tmp_path / "pulled")
    )
    assert all((kept[name] == pulled[name]).all() for name in kept)
    card = (tmp_path / "pulled" / "README.md").read_text()
    for text in ("license: mit", "Licence of the data: MIT", "over 6 held-out episodes; fewer"):
        assert text in card
    assert "| where pixels change | 1 step (0.1 s) | 5 steps (0.5 s) |" in card
    assert card.index("| model | 17.0 | 13.0 |") < card.index("| model | 30.0 | – |")
    assert "| persistence | 28.0 | 23.0 |" in card
    assert "tokenwm pull robot/square --out square" in card
    assert not (tmp_path / "pulled" / ".cache").exists()
    everything = b"".join(hub.files.values())
    for private in (b"/home/ada", b"secret project/", b"~/lab", TOKEN.encode(), b"signature"):
        assert private not in everything, private


def test_a_dataset_comes_back_and_is_whole(hub: StandIn, tmp_path: Path) -> None:
    write_frame_shards(tmp_path / "frames")
    manifest = Manifest.load(tmp_path / "frames")
    pages = {"quality.html": b"<script>", "quality.json": b'{"source": "/mnt/lab/square"}'}
    for name, content in pages.items():
        (tmp_path / "frames" / name).write_bytes(content)
    named = replace(
        manifest,
        provenance={"source": "/mnt/lab/square", "licence": "cc-by-4.0"},
        files={name: hashlib.sha256(content).hexdigest() for name, content in pages.items()},
    )
    named.save(tmp_path / "frames")
    push(tmp_path / "frames", "robot/square")
    pull("robot/square", tmp_path / "pulled", kind="dataset")
    pulled = Manifest.load(tmp_path / "pulled")
    assert pulled.shards == manifest.shards
    assert list(pulled.files) == ["quality.json"]
    assert json.loads((tmp_path / "pulled" / "quality.json").read_text()) == {"source": "square"}
    assert not (tmp_path / "pulled" / "quality.html").exists()
    assert pulled.provenance == {"source": "square", "licence": "cc-by-4.0"}
    assert "license: cc-by-4.0" in hub.files["README.md"].decode()
    assert any(path.startswith("/api/datasets/robot/square") for path in hub.asked)


def test_code_and_pickles_are_left_where_they_are(
    hub: StandIn, checkpoint: Path, tmp_path: Path
) -> None:
    push(checkpoint, "robot/square")
    hub.files |= {"modeling.py": b"raise", "weights.pkl": b"\x80\x04", "a/b/c.json": b"{}"}
    pull("robot/square", tmp_path / "pulled")
    assert not list((tmp_path / "pulled").rglob("*.p*y")) + list(tmp_path.rglob("*.pkl"))
    assert not any("modeling" in path or ".pkl" in path for path in hub.asked if "resolve" in path)


def test_a_damaged_head_is_refused(hub: StandIn, checkpoint: Path, tmp_path: Path) -> None:
    push(checkpoint, "robot/square")
    name = "heads/readout/head.json"
    hub.files[name] = hub.files[name].replace(b'"weights_sha256": "', b'"weights_sha256": "0')
    with pytest.raises(TokenwmError, match="readout was changed or damaged"):
        pull("robot/square", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    "name", ["../evil.json", "a/../../evil.json", "/etc/evil.json", "a\\b.json"]
)
def test_paths_out_of_the_folder_are_refused(
    hub: StandIn, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    push(checkpoint, "robot/square")
    hub.listed = [*hub.siblings(), entry(name, b"{}")]
    with pytest.raises(TokenwmError, match="a path out of its folder"):
        pull("robot/square", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_what_was_changed_on_the_way_is_refused(
    hub: StandIn, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    push(checkpoint, "robot/square")
    hub.listed = hub.siblings()
    hub.files[name] = hub.files[name][:-1] + b"!"
    with pytest.raises(TokenwmError, match=f"{name} is not what the hub lists"):
        pull("robot/square", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_what_is_consistent_but_no_checkpoint_is_refused(
    hub: StandIn, checkpoint: Path, tmp_path: Path
) -> None:
    push(checkpoint, "robot/square")
    hub.files["config.yaml"] = b"kind: pickle\n"
    with pytest.raises(TokenwmError):
        pull("robot/square", tmp_path / "pulled")
    del hub.files["config.yaml"]
    with pytest.raises(TokenwmError, match="holds no model of tokenwm"):
        pull("robot/square", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_limits_and_wrong_names_are_said(hub: StandIn, checkpoint: Path, tmp_path: Path) -> None:
    push(checkpoint, "robot/square")
    with pytest.raises(TokenwmError, match="--max-gigabytes"):
        pull("robot/square", tmp_path / "pulled", max_bytes=1000)
    with pytest.raises(TokenwmError, match="give OWNER/NAME"):
        pull("square", tmp_path / "pulled")
    with pytest.raises(TokenwmError, match="exists; choose another --out"):
        pull("robot/square", tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(TokenwmError, match="exists; choose another --out"):  # no checkpoint
        pull("robot/square", tmp_path / "mine", overwrite=True)
    with pytest.raises(TokenwmError, match="nothing to push"):
        push(tmp_path, "robot/square")


def test_a_file_that_still_names_a_folder_of_this_machine_is_not_pushed(
    hub: StandIn, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    config = checkpoint / "config.yaml"
    before = config.read_text()
    config.write_text(f"{before}\n# made in /home/ada/lab\n")
    try:
        with pytest.raises(TokenwmError, match=r"config\.yaml names a folder of this machine"):
            push(checkpoint, "robot/square")
    finally:
        config.write_text(before)
    assert not hub.files


def test_a_hub_that_is_not_there_is_an_error_of_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(checkpoint), "robot/square"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the hub: ")
    assert TOKEN not in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ada/data/frames", "frames"),
        ("../shared/data/g1", "g1"),
        ("C:\\Users\\ada\\frames", "frames"),
        ("runs/g1/frames", "runs/g1/frames"),
        ("https://host/a/b?token=1 and", "https://host/a/b and"),
        ("s3://key:secret@bucket/a/b", "s3://bucket/a/b"),
        ("meta/, names and sizes", "meta/, names and sizes"),
        ("rad; m/s^2", "rad; m/s^2"),
        (f"token {TOKEN}", "token "),
    ],
)
def test_only_private_parts_of_a_text_go(text: str, expected: str) -> None:
    assert without_private({"a": [text]}) == {"a": [expected]}


def test_a_card_cannot_be_written_into() -> None:
    card = make_card("model", "a/b", {"data_name": "x\n---\n<script>", "licence": 'a"\nb: c'})
    assert "\\<script\\>" in card
    assert "\n---\n<" not in card
    assert "\nb: c" not in card
    assert "nothing is claimed" in card
