"""Write the golden files that tests compare with: ``python -m tools.regenerate_golden``.

Run it after a change that is meant to change them, look at ``git diff tests/golden``, and say in
CHANGELOG.md what it means for checkpoints that exist.
"""

import json
from pathlib import Path

import numpy as np
from torch import nn

from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer, DiscreteTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

STATE_DICT_KEYS = Path(__file__).parents[1] / "tests" / "golden" / "state_dict_keys.json"


def contract_modules() -> dict[str, nn.Module]:
    """Models whose weights must keep their names and shapes, or old checkpoints cannot be read."""
    modules: dict[str, nn.Module] = {}
    for quantizer in ("fsq", "vq"):
        config = FrameTokenizerConfig(
            channels=(16, 32), attention_stages=(1,), codebook_size=64, quantizer=quantizer
        )
        modules[f"tokenizer {quantizer}"] = FrameTokenizer(config, (16, 16), 2)
    binning = BinTokenizer(edges=np.linspace(-1.0, 1.0, 9)[None].repeat(2, axis=0))
    discrete = DiscreteTokenizer(num_values=5, num_dimensions=1)
    sizes = TransformerConfig(dim=32, num_layers=2, num_heads=2, window=4)
    for name, action, state in (
        ("continuous", binning, binning),
        ("discrete", discrete, discrete),
        ("frames only", binning, None),
    ):
        vocabulary = Vocabulary(
            codebook_size=64,
            code_levels=(8, 8),
            num_cameras=2,
            grid=(2, 2),
            action=action,
            state=state,
            has_reward=state is not None,
            tokenizer_hash="",
        )
        modules[f"world model {name}"] = WorldModel(WorldModelConfig(transformer=sizes), vocabulary)
    return modules


def state_dict_keys() -> dict[str, dict[str, str]]:
    """Model → weight → dtype and shape."""
    return {
        name: {
            key: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            for key, tensor in module.state_dict().items()
        }
        for name, module in contract_modules().items()
    }


def main() -> None:
    """Write every golden file."""
    STATE_DICT_KEYS.parent.mkdir(parents=True, exist_ok=True)
    STATE_DICT_KEYS.write_text(json.dumps(state_dict_keys(), indent=1) + "\n")


if __name__ == "__main__":
    main()
