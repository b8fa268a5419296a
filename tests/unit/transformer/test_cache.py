"""The ring buffer against a list that forgets nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenwm.transformer.cache import KVCache

passes = st.lists(st.integers(1, 3), min_size=1, max_size=8)


def make_cache(window: int, length: int, **changes: object) -> KVCache:
    sizes = {"num_layers": 2, "batch_size": 1, "num_kv_heads": 1, "head_dim": 1}
    return KVCache(**sizes, window=window, positions_per_step=length, **changes)  # type: ignore[arg-type]


@given(
    window=st.integers(1, 4), length=st.integers(1, 4), num_steps=st.integers(1, 12), data=st.data()
)
def test_a_pass_sees_the_window_and_nothing_else(
    window: int, length: int, num_steps: int, data: st.DataObject
) -> None:
    """Every value is its own position, so what the mask lets through can be read off."""
    cache = make_cache(window, length)
    for step in range(num_steps):
        slot = 0
        while slot < length:
            count = data.draw(st.integers(1, length - slot))
            slots = torch.arange(slot, slot + count)
            mask = cache.seek(torch.tensor(step), slots)
            for layer in range(2):
                number = (1000.0 * layer + step * length + slots).view(1, 1, count, 1)
                keys, values = cache.layer(layer).write(number, -number)
                assert torch.equal(keys, -values)
                for row in range(count):
                    seen = values[0, 0, mask[row], 0].neg() - 1000 * layer
                    first = max(0, step - window + 1) * length
                    expected = torch.arange(first, step * length + int(slots[row]) + 1)
                    assert torch.equal(seen.sort().values.long(), expected)
            slot += count


def test_a_restored_step_is_as_if_never_written() -> None:
    cache = make_cache(2, 3)
    cache.keys.normal_()
    cache.values.normal_()
    keys, values = cache.keys.clone(), cache.values.clone()
    step = torch.tensor(7)
    copy = cache.read_step(step)
    cache.seek(step, torch.arange(3))
    for layer in range(2):
        cache.layer(layer).write(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1))
    assert not torch.equal(cache.keys, keys)
    cache.restore_step(step, copy)
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, values)


def test_nothing_grows() -> None:
    cache = make_cache(2, 3, dtype=torch.bfloat16)
    assert cache.keys.shape == cache.values.shape == (2, 1, 1, 6, 1)
    before = cache.keys.data_ptr()
    for step in range(5):
        cache.seek(torch.tensor(step), torch.arange(3))
        cache.layer(0).write(torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1))
    assert cache.keys.data_ptr() == before
    assert cache.keys.dtype == torch.bfloat16
