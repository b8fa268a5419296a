"""The sizes that the documentation states are those of the configs that are shipped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.small_models import binning, small_vocabulary
from tokenwm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def read(stage: str, size: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONFIGS / stage / f"{size}.yaml").read_text())
    return values["model"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("size", "least", "most"),
    [("small", 1.4e6, 1.8e6), ("base", 80e6, 90e6), ("large", 250e6, 330e6)],
)
def test_world_models_have_the_parameters_they_are_said_to_have(
    size: str, least: float, most: float
) -> None:
    """Over 64 tokens per frame out of 512, and 256 bins of 2 states and 2 actions: Push-T."""
    values = read("world_model", size)["model"]
    transformer = TransformerConfig(**values.pop("transformer"))
    vocabulary = replace(
        small_vocabulary(),
        codebook_size=512,
        code_levels=(8, 8, 8),
        num_cameras=1,
        grid=(8, 8),
        action=binning(2, 256),
        state=binning(2, 256),
    )
    with torch.device("meta"):  # shapes only: a gigabyte of weights is not made
        model = WorldModel(WorldModelConfig(transformer=transformer, **values), vocabulary)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert least < sum(parameter.numel() for parameter in model.parameters()) < most


@pytest.mark.parametrize(("size", "least", "most"), [("small", 0.4e6, 0.6e6)])
def test_tokenizers_have_the_parameters_they_are_said_to_have(
    size: str, least: float, most: float
) -> None:
    values = read("tokenizer", size)["tokenizer"]
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    tokenizer = FrameTokenizer(FrameTokenizerConfig(**{**values, **lists}), (64, 64))
    assert tokenizer.tokens_per_frame == 64
    assert least < sum(parameter.numel() for parameter in tokenizer.parameters()) < most
