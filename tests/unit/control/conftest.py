from pathlib import Path

import pytest

from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "data_recipes"


@pytest.fixture(scope="session")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small episodes of Push-T in steps of five actions, one split."""
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    small = [f"source.env_kwargs.observation_{side}=16" for side in ("width", "height")]
    small += ["source.num_episodes=2", "source.max_steps=36", "image_size=[16,16]"]
    small += ["splits.val=0", "splits.test=0"]
    out = tmp_path_factory.mktemp("pusht") / "data"
    prepare(load_recipe(RECIPES / "pusht_chunks.yaml", small), out)
    return out
