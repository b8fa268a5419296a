from pathlib import Path

import pytest

from tests.moving_square import make_model, save_model, write_squares
from tokenwm.evaluation.evaluate import evaluate
from tokenwm.evaluation.measure import EvaluationConfig
from tokenwm.evaluation.results import Evaluation
from tokenwm.imagination.token_world_model import TokenWorldModel

CONFIG = EvaluationConfig(num_context_frames=3, imagination_horizon=6, num_starts=2, batch_size=4)


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, {"train": (20,), "val": (16,), "test": (14, 20, 11, 6)})
    return folder


@pytest.fixture(scope="session")
def model() -> TokenWorldModel:
    return make_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, model: TokenWorldModel) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "model", model)


@pytest.fixture(scope="session")
def config() -> EvaluationConfig:
    return CONFIG


@pytest.fixture(scope="session")
def evaluation(model: TokenWorldModel, squares: Path) -> Evaluation:
    return evaluate(model, squares, CONFIG)
