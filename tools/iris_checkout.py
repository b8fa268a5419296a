"""Checkout of IRIS (Micheli et al. 2023) that the user names: its modules and its settings.

Nothing of it is copied: its files are imported where they lie, without those that need a simulator
or downloaded weights. Used by ``tools/compare_iris.py`` and ``tools/bench_imagination.py``.
"""

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from torch import Tensor, nn

PACKAGE = "iris_models"
OUTSIDE = ("cv2", "dataset", "episode", "utils")
"""Modules that its models import, by names that may be those of others here."""


class PixelDistance(nn.Module):
    """Mean absolute difference of pixels, where IRIS's perceptual loss needs downloaded weights."""

    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """``(B, C, H, W)`` twice → ``(B, 1, 1, 1)``."""
        return (pictures - targets).abs().mean((1, 2, 3), keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """Modules of IRIS, and its settings.

    Attributes:
        folder: Folder of https://github.com/eloialonso/iris.
        tokenizer: Its package ``models.tokenizer``; the perceptual loss is :class:`PixelDistance`.
        transformer: Its module ``models.transformer``.
        world_model: Its module ``models.world_model``.
        utils: Its module ``utils``.
    """

    folder: Path
    tokenizer: ModuleType
    transformer: ModuleType
    world_model: ModuleType
    utils: ModuleType

    def settings(self, name: str) -> dict[str, Any]:
        """Values of ``config/NAME.yaml``, without the classes that they are for."""
        values = yaml.safe_load((self.folder / "config" / f"{name}.yaml").read_text())
        return {key: value for key, value in values.items() if key != "_target_"}

    @property
    def digest(self) -> str:
        """SHA-256 over its sources and settings."""
        files = [*self.folder.glob("src/**/*.py"), *self.folder.glob("config/**/*.yaml")]
        return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def load_checkout(folder: Path) -> Checkout:
    """Import IRIS's models.

    Args:
        folder: Folder of https://github.com/eloialonso/iris.
    """
    source = folder / "src"
    if not (source / "models" / "world_model.py").is_file():
        sys.exit(f"{folder} is no checkout of https://github.com/eloialonso/iris")
    before = {name: sys.modules.pop(name) for name in OUTSIDE if name in sys.modules}
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]  # of another checkout
    _stand_in(PACKAGE, __path__=[str(source / "models")])
    _stand_in(f"{PACKAGE}.tokenizer.lpips", LPIPS=PixelDistance)
    _stand_in("cv2")
    _stand_in("dataset", Batch=object)
    _stand_in("episode", Episode=object)
    try:
        utils = _from_file("utils", source / "utils.py")
        modules = {
            name: importlib.import_module(f"{PACKAGE}.{name}")
            for name in ("tokenizer", "transformer", "world_model")
        }
    finally:
        for name in OUTSIDE:
            sys.modules.pop(name, None)
        sys.modules.update(before)
    return Checkout(folder=folder, utils=utils, **modules)


def _stand_in(name: str, **contents: object) -> None:
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents)


def _from_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
