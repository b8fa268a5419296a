"""Baselines of the benchmark decode what the engines do: otherwise a comparison means nothing."""

import sys
from pathlib import Path

import pytest
import torch

from tests.small_models import random_tokens, small_world_model
from tokenwm.imagination.decode import decode_steps, prefill
from tokenwm.imagination.sampling import SamplingConfig

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
import imagination_baselines as baselines  # noqa: E402


def most_likely(probabilities: torch.Tensor, _: int) -> torch.Tensor:
    return probabilities.argmax(-1, keepdim=True)


@torch.no_grad()
@pytest.mark.parametrize("num_context", [1, 5])
def test_the_plain_loop_imagines_what_sequential_decoding_does(
    monkeypatch: pytest.MonkeyPatch, num_context: int
) -> None:
    """As long as all fits into the window; past it the loop keeps positions, not whole steps."""
    model = small_world_model("frame", window=12)
    tokens = random_tokens(model, 2, num_context + 6)
    context, actions = tokens.steps(slice(num_context)), tokens.action[:, num_context - 1 : -1]
    greedy = SamplingConfig(temperature=0.0)
    _, expected = decode_steps(model, prefill(model, context), actions, greedy)
    monkeypatch.setattr(torch, "multinomial", most_likely)
    got = baselines.plain_loop(model, context, actions)
    assert torch.equal(got.frame, expected.frame_tokens)
    assert len(got.frame.unique()) > 4
    assert got.passes == actions.shape[1] * model.layout.positions_per_step


def test_a_folder_that_is_no_checkout_of_iris_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no checkout of https://github\.com/eloialonso/iris"):
        baselines.iris_engine(tmp_path, small_world_model("frame"))
