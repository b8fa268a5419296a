"""Ends and rare rewards are learned, and evaluation says how well."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.small_datasets import falling_square, write_episodes, write_token_shards
from tests.small_models import small_tokenizer
from tests.small_runs import run
from tokenwm.checkpoint import LoadedWorldModel
from tokenwm.evaluation.evaluate import evaluate
from tokenwm.evaluation.measure import EvaluationConfig
from tokenwm.evaluation.report.outcomes import outcome_sentences
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.training import OptimizerConfig
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.training import WorldModelModule
from tokenwm.transformer.world_model import WorldModelConfig

HORIZON = 3
NUM_TRAINING_STEPS = 250


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_ends_and_rare_rewards_are_foreseen(tmp_path: Path) -> None:
    """Every episode has one first and at most one last action; both outcomes are learned."""
    frames, tokens = tmp_path / "frames", tmp_path / "tokens"
    counts = {"train": range(60), "val": range(60, 64), "test": range(64, 84)}
    episodes = {
        split: [falling_square(seed, cut=seed % 3 == 0) for seed in seeds]
        for split, seeds in counts.items()
    }
    write_episodes(frames, episodes)
    write_token_shards(frames, tokens, num_bins=24, method="uniform")
    torch.manual_seed(0)
    config = WorldModelConfig(
        transformer=TransformerConfig(dim=32, num_layers=2, num_heads=2, window=3),
        reward_weight=1.0,
        termination_weight=1.0,
    )
    module = WorldModelModule(config, OptimizerConfig(learning_rate=5e-3, warmup_steps=10))
    data = {"num_steps": 5, "batch_size": 32}
    run(
        tmp_path,
        module,
        tokens,
        max_steps=NUM_TRAINING_STEPS,
        validate_every=NUM_TRAINING_STEPS,
        data=data,
    )
    model = TokenWorldModel(
        LoadedWorldModel(
            world_model=module.world_model.eval(),
            tokenizer=small_tokenizer().eval(),
            control_rate=10.0,
            cameras=("top",),
            provenance={},
        )
    )
    assert model.vocabulary.reward_range == (-2.0, 5.0)
    found = evaluate(
        model,
        frames,
        EvaluationConfig(
            num_context_frames=1, imagination_horizon=HORIZON, num_starts=6, num_examples=0
        ),
    )
    ended = sum(bool(episode["terminated"].any()) for episode in episodes["test"])
    assert found.termination is not None and found.termination.num_episodes == ended
    # Of each end, after 1, 2 and 3 imagined steps.
    assert found.termination.true_per_horizon == (ended,) * HORIZON
    assert found.termination.recall >= 0.9
    assert found.termination.precision is not None and found.termination.precision >= 0.8
    errors, squared = found.reward_error, found.reward_squared_error
    assert errors is not None and squared is not None
    for curves in (errors, squared):
        assert curves["model"].mean.mean() < 0.5 * curves["training_mean"].mean.mean()
    *_, ends, rewards = outcome_sentences(found)
    assert f"Endings: {ended} episodes that ended, imagined" in ends
    assert f" up to the end {HORIZON * ended} times among" in ends
    assert f"3: {ended} of {ended}" in ends
    assert f"over {len(found.episodes)} episodes" in rewards and "of mean of training" in rewards

    # The first action of an episode, and the others, of whose two rewards one is rare.
    first, other = [], []
    for episode in episodes["test"]:
        context = model.context(
            episode["frames.top"][None, :1, None],
            episode["action"][None, :0],
            episode["state"][None, :1],
        )
        rollout = model.imagine(context, episode["action"][None, :-1])
        expected = rollout.reward[0].numpy()
        first.append(expected[0])
        other += expected[1:][episode["reward"][1:-1] < 2].tolist()
    assert np.mean(first) == pytest.approx(-2.0, abs=0.2)
    assert np.mean(other) == pytest.approx(0.2, abs=0.1)
