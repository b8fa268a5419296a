from pathlib import Path

import numpy as np
import torch

from tests.moving_square import write_squares
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.flicker import MAX_FRAMES, NOISE_LEVELS, measure_flicker, with_noise
from tokenwm.imagination.token_world_model import TokenWorldModel


def test_noise_is_whole_levels_within_its_bounds_and_no_overflow() -> None:
    frames = torch.tensor([0, 1, 128, 254, 255], dtype=torch.uint8).repeat_interleave(2000)
    assert torch.equal(with_noise(frames, 0, torch.Generator()), frames)
    noisy = with_noise(frames, 2, torch.Generator().manual_seed(0)).view(5, -1)
    assert [sorted(set(row.tolist())) for row in noisy] == [
        [0, 1, 2],
        [0, 1, 2, 3],
        [126, 127, 128, 129, 130],
        [252, 253, 254, 255],
        [253, 254, 255],
    ]
    share = (noisy[2] == 128).float().mean()
    assert abs(float(share) - 1 / 5) < 0.04


def test_shares_by_hand(squares: Path, model: TokenWorldModel) -> None:
    reader = ShardReader(squares)
    keys = reader.keys("test")
    found = measure_flicker(model, reader, keys, seed=0)
    assert found.shape == (len(keys), len(NOISE_LEVELS))
    for key, shares in zip(keys, found, strict=True):
        tokens = model.tokenizer.encode_frames(torch.from_numpy(reader.frames(key)))
        assert shares[0] == float((tokens[1:] != tokens[:-1]).double().mean())
    assert found[:, 1:].mean() > found[:, 0].mean()
    np.testing.assert_array_equal(measure_flicker(model, reader, keys, seed=0), found)


def test_still_frames_do_not_flicker_until_there_is_noise(
    tmp_path: Path, model: TokenWorldModel
) -> None:
    write_squares(tmp_path, {"test": (MAX_FRAMES + 9,)}, still=True)
    reader = ShardReader(tmp_path)
    ((recorded, *noisy),) = measure_flicker(model, reader, reader.keys("test"), seed=0)
    assert recorded == 0.0 and min(noisy) > 0.0
