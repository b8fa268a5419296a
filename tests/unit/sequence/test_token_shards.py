import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.small_datasets import LENGTHS, write_token_shards
from tests.small_models import small_tokenizer
from tokenwm.checkpoint import tokenizer_hash
from tokenwm.data.shards.manifest import Feature, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.tasks import UNFINISHED_NAME, Progress, ShowProgress
from tokenwm.errors import ShardError, TokenwmError
from tokenwm.sequence import token_shards as module
from tokenwm.sequence.borrowing import borrow_vocabulary, warn_of_values_outside
from tokenwm.sequence.token_shards import (
    fit_scalar_tokenizer,
    make_vocabulary,
    read_vocabulary,
    shift_of,
    tokenize_shards,
)
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer, DiscreteTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer


def vocabulary_of(folder: Path, tokenizer: FrameTokenizer, **changes: Any) -> Vocabulary:
    options = {"num_action_bins": 8, "num_state_bins": 4, "method": "uniform", "use_state": True}
    return make_vocabulary(Manifest.load(folder), tokenizer, "hash", **{**options, **changes})


def test_every_frame_state_and_action_is_encoded(frame_shards: Path, token_shards: Path) -> None:
    frames, tokens = ShardReader(frame_shards), ShardReader(token_shards, verify=True)
    vocabulary = read_vocabulary(tokens.manifest, "here")
    tokenizer = small_tokenizer().eval()
    assert vocabulary.tokenizer_hash == tokenizer_hash(tokenizer)
    assert vocabulary.state is not None
    for split, lengths in LENGTHS.items():
        assert frames.keys(split) == tokens.keys(split)
        assert len(tokens.keys(split)) == len(lengths)
        for key in tokens.keys(split):  # noqa: SIM118 (not a dict)
            before, after = frames.arrays(key), tokens.arrays(key)
            expected = tokenizer.encode_frames(torch.from_numpy(before["frames.top"])[:, None])
            np.testing.assert_array_equal(after["frame_tokens"], expected.numpy())
            np.testing.assert_array_equal(
                after["state_tokens"], vocabulary.state.encode(before["state"])
            )
            np.testing.assert_array_equal(
                after["action_tokens"], vocabulary.action.encode(before["action"])
            )
            for name in ("state", "action", "reward", "terminated", "truncated"):
                np.testing.assert_array_equal(after[name], before[name])
            assert tokens.metadata(key) == frames.metadata(key)
            assert {after[f"{k}_tokens"].dtype.name for k in ("frame", "state", "action")} == {
                "uint16"
            }


def test_the_manifest_says_what_the_tokens_are(token_shards: Path) -> None:
    manifest = Manifest.load(token_shards)
    assert manifest.kind == "tokens"
    assert manifest.cameras == ("top",)
    assert manifest.features["frame_tokens"].shape == (4,)
    assert manifest.features["frame_tokens"].num_values == 64
    assert manifest.features["state_tokens"].num_values == 8
    assert manifest.extra["tokenizer_hash"] == manifest.extra["vocabulary"]["tokenizer_hash"]
    assert not any(name.startswith("frames.") for name in manifest.features)
    assert set(manifest.statistics) == {"action", "state", "reward"}


def test_passes_of_any_size_give_the_same_tokens(
    frame_shards: Path, token_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRAMES_PER_PASS", 3)
    write_token_shards(frame_shards, tmp_path)
    first, second = ShardReader(token_shards), ShardReader(tmp_path)
    for key in first.keys("train"):
        tokens = second.arrays(key)["frame_tokens"]
        np.testing.assert_array_equal(first.arrays(key)["frame_tokens"], tokens)


def test_tokens_are_kept_over_the_whole_episode(
    frame_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRAMES_PER_PASS", 3)
    tokenizer = small_tokenizer(code_margin=1.0).eval()
    vocabulary = vocabulary_of(frame_shards, tokenizer)
    tokenize_shards(frame_shards, tmp_path, tokenizer, vocabulary, num_shifted_copies=1)
    frames, tokens = ShardReader(frame_shards), ShardReader(tmp_path)
    num_kept = 0
    for key in frames.keys("train"):
        top = torch.from_numpy(frames.arrays(key)["frames.top"])[None, :, None]
        for name, shift in ((key, (0, 0)), (f"{key}_shift1", shift_of(key, 1))):
            expected = tokenizer.encode_sequence(top, shift=shift)[0].numpy()
            np.testing.assert_array_equal(tokens.arrays(name)["frame_tokens"], expected)
            num_kept += int((expected != tokenizer.encode_frames(top[0], shift).numpy()).sum())
    assert num_kept > 0


def test_progress_counts_the_episodes(frame_shards: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer().eval()
    seen: list[Progress] = []
    vocabulary = vocabulary_of(frame_shards, tokenizer)
    tokenize_shards(frame_shards, tmp_path, tokenizer, vocabulary, progress=seen.append)
    made = [now for now in seen if now.stage == "shards"]
    assert [(now.done, now.total) for now in made] == [(0, 5), (3, 5), (4, 5), (5, 5)]
    assert made[1].message == "train-000000.tar written"
    assert made[-1].new_steps == sum(sum(lengths) for lengths in LENGTHS.values())


def test_training_episodes_get_shifted_copies(
    frame_shards: Path, token_shards: Path, tmp_path: Path
) -> None:
    tokenizer = small_tokenizer().eval()
    vocabulary = vocabulary_of(frame_shards, tokenizer)
    tokenize_shards(frame_shards, tmp_path, tokenizer, vocabulary, num_shifted_copies=2)
    frames, tokens = ShardReader(frame_shards), ShardReader(tmp_path, verify=True)
    plain = ShardReader(token_shards)
    for split in ("val", "test"):
        assert tokens.keys(split) == frames.keys(split)
    expected = [
        name for key in frames.keys("train") for name in (key, f"{key}_shift1", f"{key}_shift2")
    ]
    assert list(tokens.keys("train")) == expected
    for key in frames.keys("train"):
        own = plain.arrays(key)["frame_tokens"]
        np.testing.assert_array_equal(tokens.arrays(key)["frame_tokens"], own)
        assert "shifted_down" not in tokens.metadata(key)
        top = torch.from_numpy(frames.arrays(key)["frames.top"])[:, None]
        for copy in (1, 2):
            name, (down, right) = f"{key}_shift{copy}", shift_of(key, copy)
            moved = tokenizer.encode_frames(top, shift=(down, right)).numpy()
            arrays, metadata = tokens.arrays(name), tokens.metadata(name)
            np.testing.assert_array_equal(arrays["frame_tokens"], moved)
            np.testing.assert_array_equal(arrays["action"], tokens.arrays(key)["action"])
            assert (metadata["shifted_down"], metadata["shifted_right"]) == (down, right)
    with pytest.raises(TokenwmError, match="num_shifted_copies=-1"):
        tokenize_shards(frame_shards, tmp_path, tokenizer, vocabulary, num_shifted_copies=-1)


def test_shifts_are_a_function_of_episode_and_copy() -> None:
    assert shift_of("a", 0) == (0, 0)
    shifts = {(key, copy): shift_of(key, copy) for key in "abcdefgh" for copy in range(1, 30)}
    assert len(set(shifts.values())) > 60  # of 80
    assert (0, 0) not in shifts.values()
    assert max(max(map(abs, shift)) for shift in shifts.values()) == module.MAX_SHIFT
    assert shift_of("a", 3) == shifts["a", 3]


def test_state_is_left_out_on_request(frame_shards: Path, tmp_path: Path) -> None:
    manifest = write_token_shards(frame_shards, tmp_path, use_state=False)
    assert read_vocabulary(manifest, "here").state is None
    assert "state_tokens" not in manifest.features


def test_bins_come_from_the_train_split(frame_shards: Path) -> None:
    manifest = Manifest.load(frame_shards)
    tokenizer = fit_scalar_tokenizer(manifest, "state", 8, "uniform")
    assert isinstance(tokenizer, BinTokenizer)
    assert tokenizer.edges[:, 0] == pytest.approx(manifest.statistics["state"]["min"])
    assert tokenizer.edges[:, -1] == pytest.approx(manifest.statistics["state"]["max"])
    assert (tokenizer.names, tokenizer.units) == (("y", "x"), "px")


def test_discrete_actions_keep_their_ids(frame_shards: Path) -> None:
    manifest = Manifest.load(frame_shards)
    feature = Feature(kind="discrete", shape=(1,), dtype="int64", num_values=7)
    manifest = replace(manifest, features={"action": feature})
    tokenizer = fit_scalar_tokenizer(manifest, "action", 8, "uniform")
    assert tokenizer == DiscreteTokenizer(num_values=7, num_dimensions=1)


def test_missing_quantiles_are_named(frame_shards: Path) -> None:
    manifest = replace(Manifest.load(frame_shards), statistics={})
    with pytest.raises(TokenwmError, match="no quantiles of state.*prepare"):
        fit_scalar_tokenizer(manifest, "state", 8, "uniform")


def test_tokens_cannot_be_tokenized_again(token_shards: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer().eval()
    vocabulary = vocabulary_of(token_shards, tokenizer)
    with pytest.raises(TokenwmError, match="holds tokens; only frames"):
        tokenize_shards(token_shards, tmp_path, tokenizer, vocabulary)


def test_another_number_of_cameras_is_refused(frame_shards: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(num_cameras=2).eval()
    vocabulary = vocabulary_of(frame_shards, tokenizer)
    with pytest.raises(TokenwmError, match=r"cameras top; .*2 camera\(s\)"):
        tokenize_shards(frame_shards, tmp_path, tokenizer, vocabulary)


def test_another_frame_size_is_refused(frame_shards: Path, tmp_path: Path) -> None:
    small = small_tokenizer()
    tokenizer = FrameTokenizer(small.config, (32, 32)).eval()
    vocabulary = vocabulary_of(frame_shards, tokenizer)
    with pytest.raises(TokenwmError, match=r"\(1, 16, 16, 3\).*\(1, 32, 32, 3\)"):
        tokenize_shards(frame_shards, tmp_path, tokenizer, vocabulary)
    with pytest.raises(ShardError, match="not a finished dataset"):
        Manifest.load(tmp_path)  # nothing half-written is taken for whole


def test_what_a_killed_run_left_is_cleared_away(
    frame_shards: Path, token_shards: Path, tmp_path: Path
) -> None:
    """It may have got further than this one will: more shifted copies, more shards."""
    for name in ("train-000000.tar", "train-000001.tar", ".val-000000.tar.01234567.partial"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / UNFINISHED_NAME).write_text("{")  # what says that these are ours, though damaged
    (tmp_path / "notes.txt").write_text("mine")
    write_token_shards(frame_shards, tmp_path)
    ShardReader(tmp_path, verify=True)
    names = {path.name for path in token_shards.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names | {"notes.txt"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stopped_run_is_continued(frame_shards: Path, token_shards: Path, tmp_path: Path) -> None:
    def interrupt(now: Progress) -> None:
        if now.done == 4:
            raise KeyboardInterrupt

    def run(folder: Path, progress: ShowProgress) -> None:
        tokenizer = small_tokenizer().eval()
        vocabulary = Vocabulary.from_dict(Manifest.load(token_shards).extra["vocabulary"])
        tokenize_shards(frame_shards, folder, tokenizer, vocabulary, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt)
    seen: list[Progress] = []
    run(tmp_path, seen.append)
    kept = [now.message for now in seen if "kept" in now.message]
    assert kept == ["train-000000.tar kept", "val-000000.tar kept"]
    assert contents(tmp_path) == contents(token_shards)


def test_workers_give_the_same_bytes(
    frame_shards: Path, token_shards: Path, tmp_path: Path
) -> None:
    tokenizer = small_tokenizer().eval()
    vocabulary = Vocabulary.from_dict(Manifest.load(token_shards).extra["vocabulary"])
    threads = torch.get_num_threads()
    tokenize_shards(frame_shards, tmp_path, tokenizer, vocabulary, num_workers=2)
    assert contents(tmp_path) == contents(token_shards)
    tokenize_shards(frame_shards, tmp_path / "inline", tokenizer, vocabulary)
    assert torch.get_num_threads() == threads


def test_a_device_that_works_in_one_process(frame_shards: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer().eval()
    vocabulary = vocabulary_of(frame_shards, tokenizer)
    tokenizer.to("meta")
    with pytest.raises(TokenwmError, match="device meta encodes in one process"):
        tokenize_shards(frame_shards, tmp_path, tokenizer, vocabulary, num_workers=2)


def test_a_damaged_frame_episode_is_named(frame_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(frame_shards, tmp_path / "frames")
    path = tmp_path / "frames" / "train-000000.tar"
    content = bytearray(path.read_bytes())
    place = ShardReader(frame_shards).episode("train_1").offsets["frames.top"] + 500
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"train-000000\.tar, episode train_1 is damaged"):
        write_token_shards(tmp_path / "frames", tmp_path / "tokens")


def test_a_finished_dataset_is_not_touched(frame_shards: Path, tmp_path: Path) -> None:
    write_token_shards(frame_shards, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_token_shards(frame_shards, tmp_path)  # the same again
    with pytest.raises(ShardError, match="holds a dataset already, of other tokens"):
        write_token_shards(frame_shards, tmp_path, use_state=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bins_can_be_those_of_another_dataset(frame_shards: Path, token_shards: Path) -> None:
    theirs = read_vocabulary(Manifest.load(token_shards), "there")
    edges = np.array([[-9.0, 0.0, 9.0]] * theirs.action.num_dimensions)
    own = replace(theirs, action=replace(theirs.action, edges=edges))
    wide = np.array([[-9.0, -1.0, 0.0, 1.0, 9.0]] * theirs.action.num_dimensions)
    wider = replace(own, action=replace(own.action, edges=wide, margin_bins=1, still=(0,)))
    assert borrow_vocabulary(theirs, wider, "there").to_dict() == theirs.to_dict()
    assert borrow_vocabulary(theirs, own, "there").to_dict() == theirs.to_dict()
    other = replace(own, tokenizer_hash="other")
    with pytest.raises(TokenwmError, match=r"does not fit: tokenizer_hash is .* there and other h"):
        borrow_vocabulary(theirs, other, "there")
    borrowed = borrow_vocabulary(theirs, other, "there", same_tokenizer=False)
    assert borrowed.to_dict() == {**theirs.to_dict(), "tokenizer_hash": "other"}
    with pytest.raises(TokenwmError, match="does not fit: action is .* there and"):
        borrow_vocabulary(theirs, replace(own, action=replace(own.action, units="m")), "there")
    with pytest.raises(TokenwmError, match="actions_per_step is None there and 2 here"):
        borrow_vocabulary(theirs, replace(own, actions_per_step=2), "there")
    with pytest.raises(TokenwmError, match="holds frames"):
        read_vocabulary(Manifest.load(frame_shards), "there")


def test_values_beyond_borrowed_bins_are_said(
    frame_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames, vocabulary = Manifest.load(frame_shards), vocabulary_of(frame_shards, small_tokenizer())
    warn_of_values_outside(vocabulary, frames, "yesterday")
    assert caplog.text == ""
    assert isinstance(vocabulary.state, BinTokenizer)
    edges = vocabulary.state.edges.copy()
    edges[1] = np.linspace(edges[1, 0], (edges[1, 0] + edges[1, -1]) / 2, edges.shape[1])
    narrow = replace(vocabulary, state=replace(vocabulary.state, edges=edges))
    warn_of_values_outside(narrow, frames, "yesterday")
    assert "1 of 2 dimensions of state leave the bins of yesterday, x by 1 of their" in caplog.text


def test_a_vocabulary_says_how_many_actions_a_step_holds(frame_shards: Path) -> None:
    plain = Manifest.load(frame_shards)
    chunks = replace(plain, extra={"actions_per_step": 2})
    options: Any = {"num_action_bins": 8, "num_state_bins": 8, "method": "uniform"}
    for manifest, count in ((plain, 1), (chunks, 2)):
        made = make_vocabulary(manifest, small_tokenizer(), "", use_state=True, **options)
        assert made.actions_per_step == count


def test_frames_carry_no_vocabulary(frame_shards: Path) -> None:
    with pytest.raises(TokenwmError, match="there holds frames.*tokenwm tokenize"):
        read_vocabulary(Manifest.load(frame_shards), "there")
