"""The machine's speed in floating-point operations per second."""

import time

import torch


def measured_peak_flops(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations per second of one large matrix product: what the hardware gives in practice.

    Args:
        device: Device to measure.
        dtype: Type of the matrices.
        size: Side of the matrices; chosen for the device if not given.
    """
    side = size or (8192 if device.type == "cuda" else 1024)
    left = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best
