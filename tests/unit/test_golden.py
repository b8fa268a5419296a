"""Contracts that change on purpose only; see ``tools/regenerate_golden.py``."""

import json

from tools.regenerate_golden import STATE_DICT_KEYS, state_dict_keys


def test_weights_keep_their_names_and_shapes() -> None:
    golden = json.loads(STATE_DICT_KEYS.read_text())
    found = state_dict_keys()
    assert found.keys() == golden.keys()
    for model in golden:
        added = sorted(found[model].items() - golden[model].items())
        removed = sorted(golden[model].items() - found[model].items())
        assert (added, removed) == ([], []), (
            f"{model}: older checkpoints can no longer be read. If that is meant, run "
            "'python -m tools.regenerate_golden', raise CHECKPOINT_VERSION and note it in CHANGELOG"
        )
