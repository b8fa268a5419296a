"""Counted operations and parameters against torch's own counter, and against the weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.small_models import VOCABULARIES, random_tokens, small_tokenizer, small_vocabulary
from tokenwm.flops import (
    FlopCount,
    imagination_flops,
    tokenizer_flops,
    world_model_flops,
)
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.transformer.losses import losses_of
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

STEPS, ROWS = 5, 3


def config(window: int = 3, draft_layers: int = 0, **sizes: int) -> WorldModelConfig:
    values = {"dim": 32, "num_layers": 3, "num_heads": 4, **sizes}
    return WorldModelConfig(
        transformer=TransformerConfig(window=window, **values), draft_layers=draft_layers
    )


def counted(config: WorldModelConfig, vocabulary: Vocabulary) -> tuple[float, float]:
    """Forward, and forward and backward, by torch's counter over the real losses."""
    torch.manual_seed(0)
    model = WorldModel(config, vocabulary)
    tokens = random_tokens(model, ROWS, STEPS)
    valid = torch.ones(ROWS, STEPS, dtype=torch.bool)
    reward = torch.randn(ROWS, STEPS) if vocabulary.has_reward else None
    totals = []
    for backward in (False, True):
        # torch counts attention only where it is made of products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            losses = losses_of(model, tokens, action_valid=valid, reward=reward, terminated=~valid)
            if backward:
                losses.total.backward()
        totals.append(float(counter.get_total_flops()))
    # The gradient of a depthwise kernel is counted as if every channel met every other.
    kernel = model.hints.neighbourhood.weight
    rows = ROWS * (STEPS - vocabulary.layout.has_state) * vocabulary.tokens_per_frame
    return totals[0], totals[1] - 2.0 * kernel.numel() * rows * (len(kernel) - 1)


CASES: dict[str, tuple[WorldModelConfig, Vocabulary]] = {
    **{kind: (config(), small_vocabulary(kind)) for kind in VOCABULARIES},
    "no reward": (config(), small_vocabulary("frame", has_reward=False)),
    "causal, no mask": (config(window=8), small_vocabulary("frame")),
    "draft head": (config(draft_layers=2), small_vocabulary("frame+state")),
    "digits only": (
        replace(config(draft_layers=1), code_rows=False),
        small_vocabulary("frame+state"),
    ),
    "grouped queries": (config(num_kv_heads=2), small_vocabulary("frame+state")),
    "wide": (config(dim=96, num_layers=2), small_vocabulary("frame")),
    "narrow, deep": (config(dim=16, num_layers=7, num_heads=1), small_vocabulary("discrete")),
    "many codes": (
        config(),
        replace(small_vocabulary("frame+state"), codebook_size=1000, code_levels=(8, 5, 5, 5)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_torch_counts(case: str) -> None:
    sizes, vocabulary = CASES[case]
    forward, whole = counted(sizes, vocabulary)
    count = world_model_flops(sizes, vocabulary, num_steps=STEPS, batch_size=ROWS)
    assert count.forward == pytest.approx(forward, rel=0.01)
    assert count.training == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_in_one_component(case: str) -> None:
    sizes, vocabulary = CASES[case]
    model = WorldModel(sizes, vocabulary)
    count = world_model_flops(sizes, vocabulary, num_steps=STEPS)
    assert count.num_parameters == sum(p.numel() for p in model.parameters())
    assert all(part.num_matmul_parameters <= part.num_parameters for part in count.components)
    tables = ("embedding", "table", "bias", "norm", "sharpness", "no_hint")
    of_codes = "frame_head.table" if sizes.code_rows else "frame_head.digit_table"
    matmul = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name == of_codes or not any(word in name for word in tables)
    ]
    layers = [model.action_embedding.layers]
    layers += [] if model.state_embedding is None else [model.state_embedding.layers]
    matmul += [layer[index].weight.numel() for layer in layers for index in (0, 2)]
    assert count.num_matmul_parameters == sum(matmul)


def test_a_batch_costs_its_rows_and_the_tables_once() -> None:
    sizes, vocabulary = CASES["frame+state"]

    def total(batch_size: int) -> FlopCount:
        return world_model_flops(sizes, vocabulary, num_steps=STEPS, batch_size=batch_size)

    tables = sum(part.training for part in total(1).components if part.name == "code tables")
    assert tables > 0
    assert total(6).training == pytest.approx(6 * (total(1).training - tables) + tables)
    assert total(6).num_tokens == 6 * (STEPS - 1) * vocabulary.layout.num_predicted


def test_six_nd_is_near_where_layers_are_most_of_the_model() -> None:
    sizes = config(dim=256, num_layers=12)
    vocabulary = replace(small_vocabulary("frame"), grid=(6, 6))
    count = world_model_flops(sizes, vocabulary, num_steps=6, batch_size=1)
    assert count.six_nd == pytest.approx(
        6 * count.num_matmul_parameters * 5 * vocabulary.tokens_per_frame
    )
    assert 1.2 < count.training / count.six_nd < 1.6  # a sixth of the steps is not predicted


def test_an_imagined_step_costs_its_positions_and_the_window_they_see() -> None:
    vocabulary = small_vocabulary("frame+state")
    length = vocabulary.layout.positions_per_step
    near, far = (imagination_flops(config(window=window), vocabulary) for window in (3, 4))
    assert far - near == 4 * 32 * 3 * length**2  # one more step is seen from every position
    layers = world_model_flops(config(), vocabulary, num_steps=2)
    weights = {part.name: part.num_matmul_parameters for part in layers.components}
    passed = 2.0 * length * (weights["attention"] + weights["feed-forward"])
    assert passed < near < 2.0 * passed
    with_draft = imagination_flops(config(draft_layers=1), vocabulary)
    assert with_draft == near


@pytest.mark.parametrize("options", [{}, {"attention_stages": (1,)}, {"encoder_kernel_size": 1}])
@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
@pytest.mark.parametrize("num_cameras", [1, 2])
def test_the_tokenizers_operations_are_those_that_torch_counts(
    quantizer: str, num_cameras: int, options: dict[str, Any]
) -> None:
    tokenizer = small_tokenizer(quantizer, num_cameras=num_cameras, **options)
    frames = torch.randint(0, 256, (6, num_cameras, 16, 16, 3)).to(torch.uint8)
    tokenizer(frames)  # a VQ codebook begins with k-means, once
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        tokenizer.eval()(frames)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as whole:
        output = tokenizer.train()(frames)
        (output.reconstruction.square().mean() + output.commitment_loss).backward()
    count = tokenizer_flops(tokenizer, 6)
    assert count.forward == pytest.approx(forward.get_total_flops(), rel=0.01)
    assert count.training == pytest.approx(whole.get_total_flops(), rel=0.01)
    assert count.num_parameters == sum(p.numel() for p in tokenizer.parameters())
    assert count.num_tokens == 6 * tokenizer.tokens_per_frame
