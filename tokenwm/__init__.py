"""Token world models for robot learning: does the imagined future help the robot act?

``tokenwm.load(path, device="cpu")`` gives a trained model that can imagine. It is looked up on
first use, so that ``import tokenwm`` costs nothing and needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenwm.imagination.token_world_model import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from tokenwm.imagination.token_world_model import load

        return load
    raise AttributeError(f"module 'tokenwm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
