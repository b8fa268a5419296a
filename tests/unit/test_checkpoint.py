"""Checkpoint folders: what is written comes back, and nothing else is ever taken for it."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.small_models import (
    VOCABULARIES,
    binning,
    random_tokens,
    small_tokenizer,
    small_vocabulary,
    small_world_model,
    teacher_forced,
)
from tokenwm import checkpoint as module
from tokenwm.checkpoint import (
    check_tokenizer,
    load_tokenizer,
    load_world_model,
    model_folder,
    read_provenance,
    save_tokenizer,
    save_world_model,
    tokenizer_files,
    tokenizer_hash,
)
from tokenwm.errors import CheckpointError
from tokenwm.transformer.world_model import WorldModel

Load = Callable[[Path], Any]
LOADERS: dict[str, Load] = {"tokenizer": load_tokenizer, "world_model": load_world_model}


def write_world_model(folder: Path, kind: str = "frame+state") -> WorldModel:
    tokenizer = small_tokenizer().eval()
    model = small_world_model(kind)
    model.vocabulary = replace(model.vocabulary, tokenizer_hash=tokenizer_hash(tokenizer))
    provenance = {"dataset": "moving_square", "path": Path("somewhere")}
    save_world_model(
        folder,
        model,
        tokenizer,
        provenance,
        control_rate=10.0,
        cameras=("left", "right"),
        tokenizer_provenance={"steps": 7, "weights_sha256": "of another file"},
    )
    return model


@pytest.fixture(params=LOADERS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Load]:
    """A whole checkpoint folder of each kind, and what loads it."""
    folder = tmp_path / "model"
    if request.param == "tokenizer":
        save_tokenizer(folder, small_tokenizer().eval(), {"dataset": "moving_square"})
    else:
        write_world_model(folder)
    LOADERS[request.param](folder)
    return folder, LOADERS[request.param]


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(values, dict)
    change(values)  # type: ignore[arg-type]
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))


# --- round trips


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
@torch.no_grad()
def test_a_tokenizer_comes_back_exactly(quantizer: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(quantizer, num_cameras=2)
    frames = torch.randint(256, (4, 2, 16, 16, 3), dtype=torch.uint8)
    tokenizer(frames)  # initialises a vq codebook, moves the statistics of the norm
    tokenizer.mean_frame.uniform_()
    tokenizer.eval()
    identity = save_tokenizer(tmp_path / "t", tokenizer, {"dataset": "moving_square"})
    loaded = load_tokenizer(tmp_path / "t")
    assert not loaded.training
    assert loaded.config == tokenizer.config
    assert loaded.image_size == (16, 16)
    assert loaded.num_cameras == 2
    assert identity == tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    tokens = tokenizer.encode_frames(frames)
    assert torch.equal(loaded.encode_frames(frames), tokens)
    difference = loaded.decode_to_unit(tokens) - tokenizer.decode_to_unit(tokens)
    assert difference.abs().max() < 1e-5  # other memory layout, other order of sums


@pytest.mark.parametrize("kind", VOCABULARIES)
@torch.no_grad()
def test_a_world_model_comes_back_exactly(kind: str, tmp_path: Path) -> None:
    model = write_world_model(tmp_path / "m", kind)
    loaded = load_world_model(tmp_path / "m")
    assert not loaded.world_model.training
    assert not loaded.tokenizer.training
    assert loaded.world_model.config == model.config
    assert loaded.world_model.vocabulary.to_dict() == model.vocabulary.to_dict()
    assert (loaded.control_rate, loaded.cameras) == (10.0, ("left", "right"))
    assert loaded.provenance["dataset"] == "moving_square"
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.world_model.state_dict()[name], tensor), name
    tokens = random_tokens(model, 2, 5)
    assert torch.equal(teacher_forced(loaded.world_model, tokens), teacher_forced(model, tokens))


def test_options_that_are_gone_are_passed_over(tmp_path: Path) -> None:
    model = write_world_model(tmp_path / "m")
    old = {"token_noise": 0.1, "scalar_noise": 0.0}
    change_config(tmp_path / "m", lambda config: config["world_model"].update(old))
    assert load_world_model(tmp_path / "m").world_model.config == model.config


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    save_tokenizer(folder, small_tokenizer(seed=0).eval(), {})
    (folder / "left-over").touch()
    second = small_tokenizer(seed=1).eval()
    save_tokenizer(folder, second, {})
    assert tokenizer_hash(load_tokenizer(folder)) == tokenizer_hash(second)
    assert not (folder / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_run_folder_stands_for_the_model_in_it(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "run" / "model", small_tokenizer().eval(), {})
    assert model_folder(tmp_path / "run") == tmp_path / "run" / "model"
    assert model_folder(tmp_path / "run" / "model") == tmp_path / "run" / "model"
    assert model_folder(str(tmp_path / "nowhere")) == tmp_path / "nowhere"
    load_tokenizer(tmp_path / "run")


# --- identity


def test_the_hash_follows_weights_config_and_sizes() -> None:
    tokenizer = small_tokenizer()
    reference = tokenizer_hash(tokenizer)
    assert tokenizer_hash(small_tokenizer()) == reference
    assert tokenizer_hash(small_tokenizer(seed=1)) != reference
    assert tokenizer_hash(small_tokenizer(commitment_weight=0.5)) != reference  # type: ignore[arg-type]
    for tensor in tokenizer.state_dict().values():
        if tensor.is_floating_point():
            kept = tensor.flatten()[0].clone()
            tensor.flatten()[0] += 1e-3
            assert tokenizer_hash(tokenizer) != reference
            tensor.flatten()[0] = kept
    assert tokenizer_hash(tokenizer) == reference


def test_a_margin_is_part_of_the_hash_and_none_is_not(tmp_path: Path) -> None:
    """Token shards and models from before there were margins keep their tokenizer."""
    for margin in (0.0, 0.2):
        tokenizer = small_tokenizer(code_margin=margin).eval()
        save_tokenizer(tmp_path / str(margin), tokenizer, {})
        assert load_tokenizer(tmp_path / str(margin)).config.code_margin == margin
        text = (tmp_path / str(margin) / "config.yaml").read_text()
        assert ("code_margin" in text) == (margin > 0)
        changed = tokenizer_hash(tokenizer) != tokenizer_hash(small_tokenizer())
        assert changed == (margin > 0)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_world_model(folder)
    other = small_tokenizer(seed=1).eval()
    save_tokenizer(folder / "tokenizer", other, {})
    with pytest.raises(CheckpointError, match="made by .*tokenwm tokenize"):
        load_world_model(folder)
    model = small_world_model()
    with pytest.raises(CheckpointError, match=f"hash {tokenizer_hash(other)[:12]}"):
        save_world_model(tmp_path / "n", model, other, {}, control_rate=10.0, cameras=())
    assert not (tmp_path / "n").exists()
    with pytest.raises(CheckpointError):
        check_tokenizer(small_vocabulary(), other)


# --- damage


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "provenance.json"])
def test_a_missing_file_is_named(saved: tuple[Path, Load], name: str) -> None:
    folder, load = saved
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{folder} has no {name}.*fit"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for load in LOADERS.values():
        with pytest.raises(CheckpointError, match="nowhere has no config.yaml"):
            load(tmp_path / "nowhere")


@pytest.mark.parametrize("place", [0, 12, 0.5, -1])
def test_a_flipped_bit_in_the_weights_is_found(saved: tuple[Path, Load], place: float) -> None:
    """In the header, in the middle of the weights, in the last byte."""
    folder, load = saved
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    index = int(place * len(data)) if isinstance(place, float) else place
    data[index] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_named(saved: tuple[Path, Load], value: float) -> None:
    """Though its hash is right: the training wrote it so."""
    folder, load = saved
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors")
    provenance = json.loads((folder / "provenance.json").read_text())
    data = (folder / "model.safetensors").read_bytes()
    provenance["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(CheckpointError, match=rf"1 of \d+ weights of {name} are NaN or infinite"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "provenance.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"[1, 2", b"[]", b"3", b"half: ["])
def test_a_damaged_file_is_an_error(saved: tuple[Path, Load], name: str, content: bytes) -> None:
    folder, load = saved
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=str(folder)):
        load(folder)


def test_a_shortened_file_is_an_error(saved: tuple[Path, Load]) -> None:
    folder, load = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(folder)):
        load(folder)


def test_the_other_kind_is_refused(tmp_path: Path) -> None:
    write_world_model(tmp_path)
    with pytest.raises(CheckpointError, match="kind 'world_model'; expected 'frame_tokenizer'"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="kind 'frame_tokenizer'; expected 'world_model'"):
        load_world_model(tmp_path / "tokenizer")


@pytest.mark.parametrize("version", [0, 1, 3, None, "2"])
def test_another_version_is_refused(saved: tuple[Path, Load], version: object) -> None:
    folder, load = saved
    change_config(folder, lambda values: values.update(checkpoint_version=version))
    with pytest.raises(CheckpointError, match=f"checkpoint_version {version}; .*CHANGELOG"):
        load(folder)


def section_of(folder: Path) -> str:
    return (
        "tokenizer" if "frame_tokenizer" in (folder / "config.yaml").read_text() else "world_model"
    )


def test_an_unknown_key_is_named(saved: tuple[Path, Load]) -> None:
    folder, load = saved
    change_config(folder, lambda values: values[section_of(folder)].update(no_such_size=3))
    with pytest.raises(CheckpointError, match=f"{folder}.*no_such_size"):
        load(folder)


def test_other_sizes_than_the_weights_are_named(saved: tuple[Path, Load]) -> None:
    folder, load = saved

    def change(values: dict[str, Any]) -> None:
        if "tokenizer" in values:
            values["tokenizer"]["channels"] = [8, 16]
        else:
            values["world_model"]["transformer"]["num_layers"] = 4

    change_config(folder, change)
    with pytest.raises(CheckpointError, match=f"(?s){folder} does not describe a model.*layers"):
        load(folder)


@pytest.mark.parametrize("value", [None, [], {}, "text", -1, [[]]], ids=str)
def test_any_damaged_entry_of_the_config_is_an_error(
    saved: tuple[Path, Load], value: object
) -> None:
    folder, load = saved
    original = (folder / "config.yaml").read_text()
    names = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(names, dict)
    for name in names:
        if name in ("cameras", "control_rate"):  # any list of names and any number will do
            continue
        change_config(folder, lambda values, name=name: values.update({name: value}))  # type: ignore[misc]
        with pytest.raises(CheckpointError):
            load(folder)
        change_config(folder, lambda values, name=name: values.pop(name))  # type: ignore[misc]
        with pytest.raises(CheckpointError):
            load(folder)
        (folder / "config.yaml").write_text(original)
    load(folder)


# --- nothing in it can run code


@pytest.mark.parametrize(
    "call",
    [
        '!!python/object/apply:os.system ["touch {0}"]',
        '!!python/object/apply:subprocess.check_output [["touch", "{0}"]]',
        '!!python/object/new:pathlib.Path ["{0}"]',
        "!!python/name:os.system",
    ],
)
def test_a_python_tag_in_the_config_does_not_run(
    saved: tuple[Path, Load], tmp_path: Path, call: str
) -> None:
    folder, load = saved
    touched = tmp_path / "touched"
    with (folder / "config.yaml").open("a") as file:
        file.write("extra: " + call.format(touched) + "\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder)
    assert not touched.exists()


def test_an_interpolation_is_not_resolved(
    saved: tuple[Path, Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config from elsewhere must not read this machine's environment."""
    folder, load = saved
    kind = OmegaConf.load(folder / "config.yaml").kind
    monkeypatch.setenv("KIND", kind)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(f"kind: {kind}", "kind: ${oc.env:KIND}", 1))
    with pytest.raises(CheckpointError, match="oc.env"):
        load(folder)


def test_pickled_weights_are_refused(saved: tuple[Path, Load]) -> None:
    folder, load = saved
    torch.save({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder)


# --- half-written


class DiskFullError(OSError):
    """What a full disk raises in the middle of writing."""


@pytest.mark.parametrize("overwriting", [False, True], ids=["new", "overwriting"])
@pytest.mark.parametrize("failing_at", [1, 2], ids=["first", "second"])
@pytest.mark.parametrize("function", ["save_file", "os.replace", "json.dumps", "Path.write_text"])
def test_a_half_written_folder_is_never_taken_for_a_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    failing_at: int,
    overwriting: bool,
) -> None:
    if function == "os.replace" and not overwriting:
        failing_at = 1  # there is nothing to move out of the way
    folder = tmp_path / "m"
    if overwriting:
        write_world_model(folder)
    model = small_world_model(seed=5)
    tokenizer = small_tokenizer().eval()
    model.vocabulary = replace(model.vocabulary, tokenizer_hash=tokenizer_hash(tokenizer))

    def save() -> None:
        save_world_model(folder, model, tokenizer, {}, control_rate=5.0, cameras=())

    owner, _, name = function.rpartition(".")
    place = {"": module, "os": os, "json": json, "Path": Path}[owner]
    original = getattr(place, name)
    calls = 0

    def fail(*args: Any, **options: Any) -> Any:
        nonlocal calls
        writes = name != "dumps" or options.get("indent")  # not where a hash is computed
        calls += int(bool(writes))
        if writes and calls == failing_at:
            raise (
                SafetensorError("disk full") if name == "save_file" else DiskFullError("disk full")
            )
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        with pytest.raises(
            CheckpointError, match=f"{folder} could not be written: disk full.*free space"
        ):
            save()

    assert [path.name for path in tmp_path.iterdir()] == (["m"] if overwriting else [])
    if overwriting:
        assert load_world_model(folder).provenance["dataset"] == "moving_square"
    save()
    assert load_world_model(folder).control_rate == 5.0
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "provenance.json"])
def test_a_partial_folder_is_not_a_checkpoint(tmp_path: Path, name: str) -> None:
    """What an interrupted save leaves behind lacks what is written last."""
    write_world_model(tmp_path / "m")
    partial = tmp_path / "n.partial"
    partial.mkdir()
    (tmp_path / "m" / name).rename(partial / name)
    for load in LOADERS.values():
        for folder in (partial, tmp_path / "n"):
            with pytest.raises(CheckpointError, match="has no"):
                load(folder)


@pytest.mark.parametrize("source", ["run", "run/model"])
def test_the_files_of_a_tokenizer_are_all_that_it_needs(tmp_path: Path, source: str) -> None:
    identity = save_tokenizer(tmp_path / "run" / "model", small_tokenizer().eval(), {})
    (tmp_path / "run" / "model" / "notes.txt").write_text("mine")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in tokenizer_files(tmp_path / source).items():
        (copy / name).write_bytes(content)
    assert tokenizer_hash(load_tokenizer(copy)) == identity
    assert not (copy / "notes.txt").exists()


def test_provenance_is_readable_json(saved: tuple[Path, Load]) -> None:
    folder, _ = saved
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["dataset"] == "moving_square"


def test_a_world_model_names_its_tokenizer_and_keeps_where_it_came_from(tmp_path: Path) -> None:
    model = write_world_model(tmp_path / "m")
    provenance, inside = read_provenance(tmp_path / "m"), read_provenance(tmp_path / "m/tokenizer")
    assert provenance["tokenizer_hash"] == model.vocabulary.tokenizer_hash
    assert inside["tokenizer_hash"] == model.vocabulary.tokenizer_hash
    assert (inside["steps"], inside["part_of"]) == (7, "world_model")
    weights = (tmp_path / "m" / "tokenizer" / "model.safetensors").read_bytes()
    assert inside["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    with pytest.raises(CheckpointError, match="provenance.json cannot be read"):
        read_provenance(tmp_path / "nowhere")


def test_the_bins_of_a_humanoid_fit(tmp_path: Path) -> None:
    """OmegaConf reads no YAML of more than 10,000 nodes; 2 × 26 dimensions of 256 bins are more."""
    tokenizer = small_tokenizer().eval()
    vocabulary = replace(
        small_vocabulary(tokenizer_hash=tokenizer_hash(tokenizer)),
        action=binning(26, 256),
        state=binning(26, 256),
    )
    model = WorldModel(small_world_model().config, vocabulary)
    save_world_model(tmp_path / "m", model, tokenizer, {}, control_rate=10.0, cameras=())
    loaded = load_world_model(tmp_path / "m").world_model.vocabulary
    assert loaded.to_dict() == vocabulary.to_dict()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"codebook_size": "many"}'])
def test_a_damaged_vocabulary_is_an_error(tmp_path: Path, content: str) -> None:
    write_world_model(tmp_path / "m")
    (tmp_path / "m" / "vocabulary.json").write_text(content)
    with pytest.raises(CheckpointError):
        load_world_model(tmp_path / "m")
