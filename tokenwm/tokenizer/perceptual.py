"""LPIPS as an optional loss: loaded only when asked for, and explicit about what it needs."""

import torch
from torch import Tensor, nn

from tokenwm.errors import TokenwmError


class PerceptualLoss(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018), AlexNet features, frozen.

    Raises:
        TokenwmError: The ``lpips`` package or its weights are not there.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips

            network = lpips.LPIPS(net="alex", verbose=False)
        except (ImportError, RuntimeError, OSError) as error:
            raise TokenwmError(
                "perceptual_weight > 0 needs LPIPS: pip install 'tokenwm[perceptual]', a "
                "torchvision that fits your torch, and its AlexNet weights in the torch hub cache "
                f"({type(error).__name__}: {error}); or set perceptual_weight to 0"
            ) from error
        self.network = network.requires_grad_(False).eval()

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """``(B, 3, H, W)`` pixels in [0, 1], twice → scalar."""
        with torch.autocast(reconstruction.device.type, enabled=False):
            distance: Tensor = self.network(reconstruction.float() * 2 - 1, target * 2 - 1)
        return distance.mean()
