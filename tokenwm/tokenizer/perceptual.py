"""LPIPS, an optional loss and figure: loaded only when asked for, explicit about what it needs."""

from pathlib import Path

import torch
from torch import Tensor, nn

from tokenwm.errors import TokenwmError

ALEXNET = "alexnet-owt-7be5be79.pth"
"""File of the weights in the torch hub cache, as torchvision names it."""
ALEXNET_PLACE = "https://download.pytorch.org/models/"


class PerceptualLoss(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018), AlexNet features, frozen.

    Args:
        wanted_by: The option that asks for it, for the message.
        may_download: Whether torchvision may fetch the weights of AlexNet if they are not there.

    Raises:
        TokenwmError: The ``lpips`` package or its weights are not there.
    """

    def __init__(
        self, wanted_by: str = "perceptual_weight > 0", *, may_download: bool = True
    ) -> None:
        super().__init__()
        try:
            import lpips

            if not may_download:
                _check_weights()
            network = lpips.LPIPS(net="alex", verbose=False)
        except (ImportError, RuntimeError, OSError) as error:
            raise TokenwmError(
                f"{wanted_by} needs LPIPS: pip install 'tokenwm[perceptual]', a "
                "torchvision that fits your torch, and its AlexNet weights in the torch hub cache "
                f"({type(error).__name__}: {error}); or leave it out"
            ) from error
        self.network = network.requires_grad_(False).eval()

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """``(B, 3, H, W)`` pixels in [0, 1], twice → scalar."""
        return self._distances(reconstruction, target).mean()

    def of_frames(self, frames: Tensor, truth: Tensor) -> Tensor:
        """``(B, cameras, H, W, 3)`` uint8, twice → ``(B,)``, mean over cameras."""
        pictures = [each.flatten(0, 1).movedim(-1, -3).float() / 255.0 for each in (frames, truth)]
        return self._distances(*pictures).reshape(len(frames), -1).mean(1)

    def _distances(self, pictures: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, enabled=False):
            distance: Tensor = self.network(pictures.float() * 2 - 1, target * 2 - 1)
        return distance


def _check_weights() -> None:
    """Check that torchvision has downloaded the weights of AlexNet before.

    Raises:
        OSError: It has not.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; download {ALEXNET_PLACE + ALEXNET} to it")
