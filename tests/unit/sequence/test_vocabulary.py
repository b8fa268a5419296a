import json
from dataclasses import replace

import pytest

from tests.small_models import VOCABULARIES, small_vocabulary
from tokenwm.errors import TokenwmError
from tokenwm.sequence.layout import StepLayout
from tokenwm.sequence.vocabulary import Vocabulary


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_vocabulary_survives_json(kind: str) -> None:
    vocabulary = small_vocabulary(kind, tokenizer_hash="abc")
    read = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert read.to_dict() == vocabulary.to_dict()
    assert read.tokenizer_hash == "abc"
    assert type(read.action) is type(vocabulary.action)
    assert type(read.state) is type(vocabulary.state)
    assert read.grid == vocabulary.grid  # a tuple again
    assert read.layout == vocabulary.layout


def test_the_range_of_rewards_is_kept_and_may_be_unknown() -> None:
    known = replace(small_vocabulary(), reward_range=(-0.5, 3.0))
    assert Vocabulary.from_dict(json.loads(json.dumps(known.to_dict()))).reward_range == (-0.5, 3.0)
    old = small_vocabulary().to_dict()
    assert "reward_range" not in old  # as older checkpoints and all token shards are
    assert Vocabulary.from_dict(old).reward_range is None
    nan, inf = float("nan"), float("inf")
    damages = ([1.0], "ab", 3, [None, 1], [0, 1, 2], [1, 0], [nan, 1], [0, inf], [-1e39, 0])
    for damaged in damages:
        with pytest.raises(TokenwmError, match="not a vocabulary"):
            Vocabulary.from_dict(old | {"reward_range": damaged})


def test_a_step_holds_one_action_or_a_whole_number_of_them() -> None:
    chunks = replace(small_vocabulary(), actions_per_step=3)  # of one dimension each
    read = Vocabulary.from_dict(json.loads(json.dumps(chunks.to_dict())))
    assert read.actions_per_step == 3
    assert Vocabulary.from_dict(small_vocabulary().to_dict()).actions_per_step == 1
    assert "actions_per_step" not in small_vocabulary().to_dict()  # as in older files
    for wrong in (2, 0, -3):
        with pytest.raises(TokenwmError, match=f"actions_per_step is {wrong} for actions of 3"):
            Vocabulary.from_dict(chunks.to_dict() | {"actions_per_step": wrong})


def test_sizes_follow_from_cameras_and_grid() -> None:
    vocabulary = small_vocabulary("frame+state")
    assert vocabulary.tokens_per_frame == 2 * 2 * 2
    assert vocabulary.layout == StepLayout(num_frame_tokens=8, has_state=True)
    assert not small_vocabulary("frame").layout.has_state


@pytest.mark.parametrize("name", sorted(small_vocabulary().to_dict()))
def test_a_missing_field_is_refused(name: str) -> None:
    values = small_vocabulary().to_dict()
    del values[name]
    with pytest.raises(TokenwmError, match=f"not a vocabulary.*{name}.*tokenwm tokenize"):
        Vocabulary.from_dict(values)


@pytest.mark.parametrize(
    "change",
    [
        {"grid": [2]},
        {"grid": 4},
        {"codebook_size": None},
        {"action": {"kind": "words"}},
        {"action": {"kind": "discrete"}},
        {"action": {"kind": "continuous", "edges": [[0.0, 1.0]], "names": [], "units": ""}},
        {"state": {"kind": "continuous", "edges": [[0.0, 2.0, 1.0]], "names": [], "units": ""}},
        {"state": 3},
        {"codebook_size": "many"},
        {"action": {"kind": "continuous", "edges": "none", "names": [], "units": ""}},
    ],
    ids=str,
)
def test_a_damaged_field_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(TokenwmError):
        Vocabulary.from_dict(small_vocabulary().to_dict() | change)
