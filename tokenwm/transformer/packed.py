"""Linear maps of a frozen model, their weights laid out once for the CPU's matrix product.

``F.linear`` lays a weight out anew in every call, or (in float32) uses a product that is slow for
few rows. oneDNN's product of a weight that was laid out before is 1.3 times as fast in bfloat16 and
twice as fast in float32 for the few rows of decoding, and in both types a row has the same bits
whatever the number of rows beside it (docs/performance.md).
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn

MOST_INPUTS_OF_LONE_ROW = 1024
"""With more inputs the product of a single row has other last bits than that of several (measured),
so it is computed twice."""


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` that is not trained any more.

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
        """Whether the packed product does what the ordinary one would do."""
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
