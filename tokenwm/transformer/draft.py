"""All tokens of the next frame at once, from the hidden state at the action."""

import math

import torch
from torch import Tensor, nn

from tokenwm.norm import RMSNorm
from tokenwm.transformer.model import Layer, TransformerConfig, init_linear, rotary_table


class DraftHead(nn.Module):
    """A hidden state for every slot of the next frame, before any of its tokens is known.

    What the transformer knows at the action joins the hint of every slot, and a few layers of
    attention among the slots, in all directions, agree on a frame. Read by the world model's own
    frame head, that is a draft for speculation, or a whole frame for those who trade exactness for
    speed: slots drawn from it do not know of one another's noise.

    Similar to the heads of Stern et al. (2018, blockwise parallel decoding); here they share layers
    and see the previous frame.

    Args:
        config: Sizes; dropout is used, the window is not.
        num_layers: Layers, at least 1.
    """

    def __init__(self, config: TransformerConfig, num_layers: int) -> None:
        super().__init__()
        self.config = config
        self.read = nn.Linear(config.dim, config.dim, bias=False)
        self.layers = nn.ModuleList(Layer(config) for _ in range(num_layers))
        self.norm = RMSNorm(config.dim)
        self.apply(init_linear)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            for projection in (layer.attention.out, layer.mlp.down):
                projection.weight.data /= math.sqrt(2 * num_layers)

    def forward(self, hidden: Tensor, hints: Tensor) -> Tensor:
        """Compute hidden states for :meth:`WorldModel.frame_logits`.

        Args:
            hidden: ``(..., D)``, the transformer's at the last action.
            hints: ``(..., K, D)`` from :meth:`WorldModel.frame_hints`, of the next frame's slots.

        Returns:
            ``(..., K, D)`` float32.
        """
        dtype = self.read.weight.dtype
        x = hints.to(dtype) + self.read(hidden.to(dtype)).unsqueeze(-2)
        shape, x = x.shape, x.flatten(0, -3)  # (N, K, D)
        # Slots have no order in time: all at step 0, and nothing is masked.
        steps = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
        table = rotary_table(steps, self.config.head_dim, self.config.rope_base)
        bias = x.new_zeros(x.shape[1], x.shape[1])
        for layer in self.layers:
            x = layer(x, table, bias)
        out: Tensor = self.norm(x)
        return out.float().view(shape)
