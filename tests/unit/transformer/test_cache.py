"""The ring buffer against a list that forgets nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenwm.transformer.cache import KVCache

passes = st.lists(st.integers(1, 3), min_size=1, max_size=8)


def make_cache(window: int, length: int, **changes: object) -> KVCache:
    sizes = {"num_layers": 2, "batch_size": 1, "num_kv_heads": 1, "head_dim": 1, **changes}
    return KVCache(**sizes, window=window, positions_per_step=length)  # type: ignore[arg-type]


@given(
    window=st.integers(1, 4),
    length=st.integers(1, 4),
    num_steps=st.integers(1, 12),
    ahead=st.integers(1, 3),
    data=st.data(),
)
def test_a_pass_sees_the_window_and_nothing_else(
    window: int, length: int, num_steps: int, ahead: int, data: st.DataObject
) -> None:
    """Every value is its own position, so what the mask lets through can be read off."""
    cache = make_cache(window, length, ahead=ahead)
    begin = 0
    while begin < num_steps * length:
        end = begin + data.draw(st.integers(1, cache.max_span))
        mask = cache.seek(torch.arange(begin, end)[None])[0, 0]
        for layer in range(2):
            number = (1000.0 * layer + torch.arange(begin, end)).view(1, 1, -1, 1)
            keys, values = cache.layer(layer).write(number, -number)
            assert torch.equal(keys, -values)
            for query in range(begin, end):
                seen = values[0, 0, mask[query - begin], 0].neg() - 1000 * layer
                oldest = max(0, query // length - window + 1) * length
                assert torch.equal(seen.sort().values.long(), torch.arange(oldest, query + 1))
        # What follows may be fed again: a rejected draft.
        begin = data.draw(st.integers(begin + 1, end))


@given(starts=st.lists(st.integers(0, 30), min_size=2, max_size=4))
def test_rows_at_different_positions_are_like_rows_alone(starts: list[int]) -> None:
    positions = torch.tensor(starts)[:, None] + torch.arange(3)
    together = make_cache(2, 3, batch_size=len(starts))
    masks = together.seek(positions)
    new = torch.randn(len(starts), 1, 3, 1)
    keys, _ = together.layer(0).write(new, new)
    for row in range(len(starts)):
        alone = make_cache(2, 3)
        assert torch.equal(alone.seek(positions[row : row + 1])[0], masks[row])
        assert torch.equal(
            alone.layer(0).write(new[row : row + 1], new[row : row + 1])[0][0], keys[row]
        )


def test_nothing_grows() -> None:
    cache = make_cache(2, 3, dtype=torch.bfloat16)
    assert cache.keys[1].shape == cache.values[1].shape == (1, 1, 9, 1)
    before = cache.keys[1].data_ptr()
    for step in range(5):
        cache.seek(step * 3 + torch.arange(3)[None])
        cache.layer(0).write(torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1))
    assert cache.keys[1].data_ptr() == before
    assert cache.keys[0].dtype == torch.bfloat16
