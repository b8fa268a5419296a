import os
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """An S3 server with a bucket ``bucket``, which the environment names."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra 's3')")
    server_module = pytest.importorskip("moto.server", reason="moto[s3] and flask are missing")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
    )
    # The servers of two modules share their buckets.
    s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
    os.environ.clear()
    os.environ.update(before)
