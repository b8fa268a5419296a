from pathlib import Path

import pytest

from tests.unit.uses.moving_square import make_model, write_squares
from tokenwm.imagination.rollout import TokenWorldModel


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, {"train": (20,), "val": (16,), "test": (14, 20, 11, 6)})
    return folder


@pytest.fixture(scope="session")
def model() -> TokenWorldModel:
    return make_model()
