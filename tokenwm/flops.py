"""Parameters and floating point operations of the models, per component and exact.

A multiplication and an addition are two operations. What is counted are products of matrices and
convolutions, as ``torch.utils.flop_counter`` does; norms, activations, softmax and the rotary
embedding are not (they are under 1 % of the arithmetic at any width worth training).

The usual ``6 N D`` stands beside it, as :attr:`FlopCount.six_nd`. It differs because not every
weight meets every position (heads are read at the positions that predict, the action is embedded
once a step), because attention has products without weights, and because small models spend a
visible share on code tables.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.frames import FrameTokenizer
from tokenwm.tokenizer.networks import SpatialAttention
from tokenwm.transformer.heads import ContinuousHead
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

BACKWARD = 2.0
"""Backward over forward: one product for the gradient of the input, one for that of the weight."""
BACKWARD_OF_WEIGHT = 1.0
"""Backward cost over forward cost where the input is data, which needs no gradient."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One part of a model.

    Attributes:
        name: Name for tables.
        num_parameters: All of its weights.
        num_matmul_parameters: Those that are multiplied with activations: no biases, no norms, no
            tables that are only looked up.
        forward: Operations of a forward pass.
        training: Operations of forward and backward.
    """

    name: str
    num_parameters: int = 0
    num_matmul_parameters: int = 0
    forward: float = 0.0
    training: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """Parameters of a model and operations of one batch.

    Attributes:
        components: The parts; every weight is in exactly one.
        num_tokens: Tokens that the batch predicts, D per step; of a frame tokenizer, those that it
            makes.
    """

    components: tuple[Component, ...]
    num_tokens: int

    @property
    def num_parameters(self) -> int:
        """All weights."""
        return sum(part.num_parameters for part in self.components)

    @property
    def num_matmul_parameters(self) -> int:
        """N of scaling laws: with the head, without tables that are only looked up."""
        return sum(part.num_matmul_parameters for part in self.components)

    @property
    def forward(self) -> float:
        """Operations of a forward pass over the batch."""
        return sum(part.forward for part in self.components)

    @property
    def training(self) -> float:
        """Operations of a training step on the batch, C per step."""
        return sum(part.training for part in self.components)

    @property
    def six_nd(self) -> float:
        """The approximation ``6 N D`` of :attr:`training`."""
        return 6.0 * self.num_matmul_parameters * self.num_tokens


def world_model_flops(
    config: WorldModelConfig, vocabulary: Vocabulary, *, num_steps: int, batch_size: int = 1
) -> FlopCount:
    """Count a teacher-forced pass of the world model.

    Attention is counted as it is computed in training, all pairs of positions of a window of
    ``num_steps`` steps, also those that the mask then hides; see :func:`imagination_flops` for what
    the window alone costs.

    Args:
        config: Sizes.
        vocabulary: Tokens of the data.
        num_steps: ``T``, steps of a training window, at least 2.
        batch_size: ``B``, windows.
    """
    with torch.device("meta"):  # shapes only
        model = WorldModel(config, vocabulary)
    slots, length = vocabulary.tokens_per_frame, vocabulary.layout.positions_per_step
    rows, follows = batch_size * num_steps, batch_size * (num_steps - 1)
    positions, predicted = rows * length, follows * slots
    width = config.transformer.dim

    layers = _products("attention", [_attentions(model)], positions)
    pairs = 4.0 * width * config.transformer.num_layers * positions * num_steps * length
    scores = Component(name="attention scores", forward=pairs, training=(1 + BACKWARD) * pairs)
    feed_forward = _products("feed-forward", [_feed_forwards(model)], positions)

    parts = [
        *_tables(model, calls_of_head=1 + (config.draft_layers > 0)),
        _scalars(model, rows),
        _hints(model, follows if vocabulary.layout.has_state else rows, slots),
        layers,
        scores,
        feed_forward,
        _code_head(model, predicted, follows * slots if config.draft_layers else 0),
        *_draft(model, config, slots, follows),
        _state_head(model, follows),
        _products("reward and termination", _outcome_heads(model), rows),
    ]
    rest = sum(p.numel() for p in model.parameters()) - sum(p.num_parameters for p in parts)
    parts.append(Component(name="norms and slots", num_parameters=rest))
    predicted_tokens = follows * vocabulary.layout.num_predicted
    return FlopCount(components=tuple(parts), num_tokens=predicted_tokens)


def imagination_flops(config: WorldModelConfig, vocabulary: Vocabulary) -> float:
    """Operations of one imagined step of one future, decoded token by token, past the window.

    Every position of the step goes through the layers once and attends to the ``window`` steps that
    it may see; code tables are added up beforehand (:meth:`WorldModel.frozen`). Pixels are not
    counted.
    """
    counted = world_model_flops(replace(config, draft_layers=0), vocabulary, num_steps=2)
    # Of two steps, these heads read one; layers and embeddings are passed by both.
    per_step = {"frame head": 1.0, "state head": 1.0}
    if vocabulary.layout.has_state:
        per_step["hints"] = 1.0
    left_out = ("attention scores", "code tables")
    products = sum(
        per_step.get(part.name, 0.5) * part.forward
        for part in counted.components
        if part.name not in left_out
    )
    length = vocabulary.layout.positions_per_step
    seen = length * (config.transformer.window - 1) * length + length * (length + 1) // 2
    return products + 4.0 * config.transformer.dim * config.transformer.num_layers * seen


def tokenizer_flops(tokenizer: FrameTokenizer, num_frames: int = 1) -> FlopCount:
    """Count a pass of the frame tokenizer, encoder to decoder, as in training.

    Args:
        tokenizer: The tokenizer; its weights do not matter.
        num_frames: Frames, each of all cameras. A perceptual loss is not counted.
    """
    images = num_frames * tokenizer.num_cameras
    config, quantizer = tokenizer.config, tokenizer.quantizer
    encoder, first = _convolutions("encoder", tokenizer.encoder.layers, tokenizer.image_size)
    decoder, _ = _convolutions("decoder", tokenizer.decoder.layers, tokenizer.grid)
    encoder = _scaled(encoder, images, less_training=first)
    distances = 0.0
    if config.quantizer == "vq":
        distances = 2.0 * images * tokenizer.tokens_per_camera * config.codebook_size
        distances *= quantizer.code_dim
    # Codes are not trained by gradients: sums per code (the same product once more) move them.
    codes = Component(
        name="quantizer",
        num_parameters=sum(p.numel() for p in quantizer.parameters()),
        forward=distances,
        training=2.0 * distances,
    )
    return FlopCount(
        components=(encoder, codes, _scaled(decoder, images)),
        num_tokens=num_frames * tokenizer.tokens_per_frame,
    )


# --- parts ------------------------------------------------------------------------------------


def _products(
    name: str, modules: Iterable[nn.Module], rows: int, backward: float = BACKWARD
) -> Component:
    """Linear maps and depthwise convolutions that ``rows`` positions pass."""
    every = list(modules)
    weights = [p.weight for m in every for p in m.modules() if isinstance(p, nn.Linear | nn.Conv2d)]
    matmul = sum(weight.numel() for weight in weights)
    forward = 2.0 * matmul * rows
    return Component(
        name=name,
        num_parameters=sum(p.numel() for module in every for p in module.parameters()),
        num_matmul_parameters=matmul,
        forward=forward,
        training=(1 + backward) * forward,
    )


def _merged(name: str, parts: Iterable[Component]) -> Component:
    every = list(parts)
    return Component(
        name=name,
        num_parameters=sum(part.num_parameters for part in every),
        num_matmul_parameters=sum(part.num_matmul_parameters for part in every),
        forward=sum(part.forward for part in every),
        training=sum(part.training for part in every),
    )


def _attentions(model: WorldModel) -> nn.Module:
    return nn.ModuleList(layer.attention for layer in model.transformer.layers)  # type: ignore[misc]


def _feed_forwards(model: WorldModel) -> nn.Module:
    return nn.ModuleList(layer.mlp for layer in model.transformer.layers)  # type: ignore[misc]


def _tables(model: WorldModel, calls_of_head: int) -> list[Component]:
    """Tables of frame codes; adding up the digits is a product with the codes, once a batch."""
    looked_up = [model.frame_embedding, model.hints.embedding]
    digits, width = model.frame_head.digits, model.config.transformer.dim
    of_head = model.frame_head.digit_table.numel()
    if model.frame_head.table is None:  # which adds up logits, not vectors
        calls_of_head = of_head = 0
    forward = 2.0 * digits.numel() * width * (len(looked_up) + calls_of_head)
    return [
        Component(
            name="code tables",
            num_parameters=sum(p.numel() for table in looked_up for p in table.parameters())
            + of_head,
            forward=forward,
            training=(1 + BACKWARD_OF_WEIGHT) * forward,
        )
    ]


def _scalars(model: WorldModel, rows: int) -> Component:
    """Embeddings of action and state; the first map of each reads fixed features."""
    parts = []
    for embedding in (model.action_embedding, model.state_embedding):
        if embedding is not None:
            read, _, write = embedding.layers
            parts.append(_products("", [read], rows, BACKWARD_OF_WEIGHT))
            parts.append(_products("", [write], rows))
    return _merged("actions and states", parts)


def _hints(model: WorldModel, steps: int, slots: int) -> Component:
    """Hints for the frames of so many steps, with what tells the new state from the old."""
    parts = [_products("", [model.hints.neighbourhood, model.hints.mix], steps * slots)]
    if model.new_state_map is not None:
        parts.append(_products("", [model.new_state_map], steps))
    return _merged("hints", parts)


def _code_head(model: WorldModel, predicted: int, drafted: int) -> Component:
    """The frame head and its copy bonus, read once more by a draft head."""
    rows, head = predicted + drafted, model.frame_head
    if head.table is None:  # logits of digits; only decoding adds them up to those of all codes
        weights, sums = head.digit_table.numel(), 2.0 * head.digits.numel() * rows
    else:
        weights, sums = head.table.numel(), 0.0
    forward = 2.0 * weights * rows
    logits = Component(
        name="",
        num_parameters=head.bias.numel() + weights,
        num_matmul_parameters=weights,
        forward=forward + sums,
        training=(1 + BACKWARD) * forward,
    )
    return _merged("frame head", [logits, _products("", [model.copy_head], rows)])


def _draft(
    model: WorldModel, config: WorldModelConfig, slots: int, follows: int
) -> list[Component]:
    if model.draft_head is None:
        return []
    rows = follows * slots
    read = _products("", [model.draft_head.read], follows)
    layers = _products("", [model.draft_head.layers], rows)
    pairs = 4.0 * config.transformer.dim * config.draft_layers * rows * slots
    return [
        _merged("draft head", [read, layers]),
        Component(name="draft attention scores", forward=pairs, training=(1 + BACKWARD) * pairs),
    ]


def _state_head(model: WorldModel, follows: int) -> Component:
    head = model.state_head
    if head is None:
        return Component(name="state head")
    if not isinstance(head, ContinuousHead):
        return _products("state head", [head], follows)
    bins = 2.0 * head.features.numel() * follows  # coefficients times fixed features
    return _merged(
        "state head",
        [
            _products("", [head.coefficients], follows),
            _products("", [head.dynamics], follows, BACKWARD_OF_WEIGHT),
            Component(name="", num_parameters=head.log_sharpness.numel()),
            Component(name="", forward=bins, training=(1 + BACKWARD_OF_WEIGHT) * bins),
        ],
    )


def _outcome_heads(model: WorldModel) -> list[nn.Module]:
    reward = [] if model.reward_head is None else [model.reward_head]
    return [*reward, model.termination_head]


def _convolutions(name: str, layers: nn.Module, size: tuple[int, int]) -> tuple[Component, float]:
    """Convolutions of one image that enters with ``size`` pixels, and what the first one costs."""
    height, width = size
    weights, first, forward = 0, 0.0, 0.0
    for layer in layers.children():
        if isinstance(layer, nn.PixelUnshuffle):
            height, width = height // layer.downscale_factor, width // layer.downscale_factor
        elif isinstance(layer, nn.PixelShuffle):
            height, width = height * layer.upscale_factor, width * layer.upscale_factor
        kernels = [m.weight.numel() for m in layer.modules() if isinstance(m, nn.Conv2d)]
        forward += 2.0 * sum(kernels) * height * width
        first = first or forward
        weights += sum(kernels)
        if isinstance(layer, SpatialAttention):
            forward += 4.0 * layer.out.in_channels * (height * width) ** 2
    component = Component(
        name=name,
        num_parameters=sum(p.numel() for p in layers.parameters()),
        num_matmul_parameters=weights,
        forward=forward,
        training=(1 + BACKWARD) * forward,
    )
    return component, first


def _scaled(part: Component, images: int, less_training: float = 0.0) -> Component:
    """Multiply the cost of one image; the first convolution needs no gradient to its input."""
    return Component(
        name=part.name,
        num_parameters=part.num_parameters,
        num_matmul_parameters=part.num_matmul_parameters,
        forward=images * part.forward,
        training=images * (part.training - less_training),
    )
