"""Datasets that many tests read and none changes; settings of all property tests."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.small_datasets import write_frame_shards, write_token_shards

# Other work on the machine must not decide.
settings.register_profile("tokenwm", deadline=None)
settings.load_profile("tokenwm")


@pytest.fixture(scope="session")
def frame_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame shards of 16 × 16 pixels, one camera, with state, reward and termination."""
    folder = tmp_path_factory.mktemp("frames")
    write_frame_shards(folder)
    return folder


@pytest.fixture(scope="session")
def token_shards(frame_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same episodes as tokens: 2 × 2 per frame, 2 of state, 2 of action."""
    folder = tmp_path_factory.mktemp("tokens")
    write_token_shards(frame_shards, folder)
    return folder
