"""A world model made ready for inference: the same results from fewer operations.

:func:`freeze` copies a model and lets classes of its copy take the place of those that training
needs: tables are added up once, norms let the linear maps behind them scale, linear maps are laid
out for the CPU's matrix product, and small maps compute in float64. Parameters keep their names, so
a frozen model loads and saves as any other.

``F.linear`` lays a weight out anew in every call, or (in float32) uses a product that is slow for
few rows. oneDNN's product of a weight that was laid out before is faster for the few rows of
decoding, and a row has the same bits whatever the number of rows beside it (docs/imagination.md).
"""

import copy
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenwm.norm import RMSNorm, gain_of, unit
from tokenwm.transformer.embeddings import CodeEmbedding, ScalarEmbedding
from tokenwm.transformer.heads import CodeHead
from tokenwm.transformer.model import Attention, Layer
from tokenwm.transformer.world_model import WorldModel

MOST_INPUTS_OF_LONE_ROW = 1024
"""With more inputs the product of a single row has other last bits than that of several, so it is
computed twice."""


@torch.no_grad()
def freeze(model: WorldModel, dtype: torch.dtype = torch.float32) -> WorldModel:
    """A copy for inference, without gradients, the transformer and the draft head in ``dtype``.

    Embeddings and the other heads stay in float32, maps of actions and everything about states are
    in float64: in float32 a product's last bits depend on the number of rows beside a row, and
    rounded to bfloat16 they may become another token. On a GPU passes become CUDA graphs.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Layer):
            _fold_norm(module.attention_norm, module.attention.qkv)
            _fold_norm(module.mlp_norm, module.mlp.gate_up)
        elif isinstance(module, CodeEmbedding):
            module.register_buffer("folded", module.vectors(), persistent=False)
            _become(module, FoldedCodeEmbedding)
        elif isinstance(module, CodeHead):
            _fold_head(module)
        elif isinstance(module, ScalarEmbedding):
            module.layers.double()
    for part, its_type in (
        (model.new_state_map, torch.float64),
        (model.state_head, torch.float64),
        (model.transformer, dtype),
        (model.hints.mix, dtype),
        (model.draft_head, dtype),
    ):
        if part is not None:
            part.to(its_type)
    for module in model.modules():
        if isinstance(module, Attention):  # in float32 whatever the type
            module.register_buffer("folded_gain", Attention.gain(module), persistent=False)
            _become(module, FoldedAttention)
    pack_linear_maps(model)
    embeddings = [model.action_embedding, model.state_embedding]
    maps = [embedding.layers for embedding in embeddings if embedding is not None]
    for its_map in (*maps, model.new_state_map, model.hints.mix):
        if its_map is not None:
            _become(its_map, _IN_ITS_TYPE.get(type(its_map), type(its_map)))
    model.graph_passes = model.slot_embedding.device.type == "cuda"
    return model


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Change a module's class to one that computes the same in another way; its content stays."""
    module.__class__ = kind


def _fold_norm(norm: RMSNorm, linear: nn.Linear) -> None:
    """Fold the gain of a norm into the linear map behind it.

    The norm's weight becomes one that scales by 1: saved and loaded the two are what they were.
    """
    linear.weight.mul_(gain_of(norm.weight))
    norm.weight.fill_(norm.weight.shape[-1] ** -0.5)
    _become(norm, FoldedNorm)


def _fold_head(head: CodeHead) -> None:
    """Turn a head into one linear map, of codes or of digits, which can be packed as others are."""
    vectors = head.digit_table if head.table is None else head.vectors()
    head.folded_map = nn.Linear(vectors.shape[1], vectors.shape[0], device="meta")
    head.folded_map.weight = nn.Parameter(vectors, requires_grad=False)
    head.folded_map.bias = nn.Parameter(head.bias, requires_grad=False)
    head.register_state_dict_post_hook(_without_folded_map)  # type: ignore[no-untyped-call]
    _become(head, FoldedCodeHead)


def _without_folded_map(head: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in ("weight", "bias"):
        state.pop(f"{prefix}folded_map.{name}", None)


class FoldedNorm(RMSNorm):
    """A norm whose gain is in the linear map behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)``, scaled to a length of 1, → the same shape."""
        return unit(x)


class FoldedAttention(Attention):
    """Attention whose gains of queries and keys were put together once."""

    folded_gain: Tensor | None

    def gain(self) -> Tensor | None:
        """Gain of queries and keys as it was folded; see :meth:`Attention.gain`."""
        return None if self.folded_gain is None else self.folded_gain.float()


class FoldedCodeEmbedding(CodeEmbedding):
    """An embedding of codes whose rows and digits were added up once."""

    folded: Tensor

    def vectors(self) -> Tensor:
        """``(V, D)``."""
        return self.folded


class FoldedCodeHead(CodeHead):
    """A head of codes that is one linear map."""

    folded_map: nn.Linear

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` → ``(..., V)``."""
        out: Tensor = self.folded_map(hidden)
        return out if self.table is not None else F.linear(out, self.digits)

    def digit_logits(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` → ``(..., sum(levels))``, only of a head without rows."""
        out: Tensor = self.folded_map(hidden)
        return out


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` whose weight is laid out for the CPU's matrix product.

    The packed weight is forgotten, and the ordinary one used, when the map is moved, converted,
    loaded, copied or pickled; a value written into the weight by other means is not seen. The
    ordinary one also serves inputs of another type, autocast, and gradients of the input.

    Args:
        linear: The map; its parameters are shared.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.packed: Tensor | None = None

    def pack(self) -> None:
        """Lay the weight out."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features)`` → ``(..., out_features)``."""
        if self.packed is None or not self._can_take(input):
            return super().forward(input)
        alone = input.numel() == self.in_features > MOST_INPUTS_OF_LONE_ROW
        rows = input.expand(2, *input.shape) if alone else input
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.packed, self.bias, "none", [], ""
        )
        return out[0] if alone else out

    def _can_take(self, input: Tensor) -> bool:
        """True if the packed product equals the ordinary one: same type, no gradient wanted."""
        wants_gradient = input.requires_grad and torch.is_grad_enabled()
        same_type = input.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu")
        return same_type and not wants_gradient

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*arguments, **options)

    def _apply(self, *arguments: Any, **options: Any) -> "PackedLinear":
        self.packed = None
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}


class _InItsType(nn.Module):
    """A map that computes in the type of its parameters, whatever the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.to(next(self.parameters()).dtype))
        return out.to(x.dtype)


class _LinearInItsType(_InItsType, nn.Linear):
    pass


class _PackedLinearInItsType(_InItsType, PackedLinear):
    pass


class _SequentialInItsType(_InItsType, nn.Sequential):
    pass


_IN_ITS_TYPE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _LinearInItsType,
    PackedLinear: _PackedLinearInItsType,
    nn.Sequential: _SequentialInItsType,
}


def pack_linear_maps(model: nn.Module) -> None:
    """Pack every linear map of a frozen model that this machine can pack, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and _can_pack(child.weight):
                packed = child if isinstance(child, PackedLinear) else PackedLinear(child)
                packed.pack()
                setattr(module, name, packed)


def unpack_linear_maps(model: nn.Module) -> None:
    """Let every linear map use its ordinary weight again, as compilers need it."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.packed = None


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
