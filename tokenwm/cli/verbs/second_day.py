"""The model that ``tokenwm quickstart --from`` begins from, and what is still there of its data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tokenwm.checkpoint import find_checkpoint, load_tokenizer, read_config, read_provenance
from tokenwm.data.loading.order import evenly_spaced
from tokenwm.data.recipes.recipe import Recipe
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.data_of import data_of, tokens_of
from tokenwm.evaluation.metrics import psnr_from_mse
from tokenwm.evaluation.outside import psnr_at_home
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.token_world_model import load

KEPT_LOSS = 0.5
"""dB of reconstruction below that at home up to which the tokenizer is kept as it is."""
SAMPLE_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class FirstDay:
    """A trained world model with its tokenizer.

    Attributes:
        path: Folder that was named.
        model: Checkpoint folder of the world model.
    """

    path: Path
    model: Path

    @classmethod
    def find(cls, path: Path) -> "FirstDay":
        """The model of a checkpoint, a training run or a quick start.

        Raises:
            CheckpointError: There is none.
        """
        return cls(path=path, model=find_checkpoint(path, "world_model"))

    @property
    def tokenizer(self) -> Path:
        """Checkpoint folder of its tokenizer."""
        return self.model / "tokenizer"

    def check_recipe(self, recipe: Recipe) -> None:
        """Check, before anything is prepared, what a recipe says of cameras, size and rate.

        Raises:
            TokenwmError: It differs from what the model was trained on.
        """
        config, of_tokenizer = read_config(self.model), read_config(self.tokenizer)
        named = getattr(recipe.source, "cameras", None)
        cameras = list(named) if isinstance(named, dict) else config["cameras"]  # else found later
        for key, wanted, found in (
            ("source.cameras", config["cameras"], cameras),
            ("image_size", of_tokenizer["image_size"], list(recipe.image_size)),
            ("control_rate", config["control_rate"], recipe.control_rate),
        ):
            if wanted != found:
                raise TokenwmError(
                    f"{key} of the recipe {recipe.name} is {found}, but {wanted} in the data that "
                    f"{self.path} was trained on; give the same (--recipe, --set)"
                )

    def check(self, frames: Path) -> None:
        """Check that new frames are of the kind that the model was trained on.

        Raises:
            TokenwmError: Cameras, frame size, actions, state or control rate differ.
        """
        check_data_fits(load(self.model, torch.device("cpu")), ShardReader(frames))

    def reconstruction(self, frames: Path) -> tuple[float, float | None]:
        """PSNR of new training frames through its tokenizer, and on its own val split, in dB."""
        home = psnr_at_home(read_provenance(self.tokenizer))
        tokenizer, reader = load_tokenizer(self.tokenizer), ShardReader(frames)
        keys = reader.keys("train")
        count = max(1, SAMPLE_FRAMES // len(keys))
        errors = []
        for key in (keys[index] for index in evenly_spaced(len(keys), SAMPLE_FRAMES)):
            whole = reader.frames(key)
            seen = torch.tensor(whole[evenly_spaced(len(whole), count)])
            decoded = tokenizer.decode_frames(tokenizer.encode_frames(seen))
            errors.append(float(((decoded.float() - seen.float()) / 255.0).square().mean()))
        return float(psnr_from_mse(float(np.mean(errors)))), home

    def old_frames(self) -> str | None:
        """Frames that its tokenizer was trained on; None if they are not there."""
        try:
            return data_of(self.model)
        except TokenwmError:
            return None

    def old_tokens(self) -> list[str]:
        """Token shards that it was trained on, of those that are there."""
        return tokens_of(self.model)
