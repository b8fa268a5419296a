import pytest
import torch

from tokenwm.transformer.model import Dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_kept(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 1001, 101)  # not a multiple of eight
    dropped = Dropout(probability)(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(probability, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    assert len(dropped.unique()) == 2


def test_neighbours_are_dropped_independently() -> None:
    """Also those that share a random number, at every place in it."""
    torch.manual_seed(0)
    kept = (Dropout(0.25)(torch.ones(80_000)) != 0).double().view(-1, 8)
    correlation = torch.corrcoef(kept.T).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 0.05
    assert torch.allclose(kept.mean(0), torch.tensor(0.75).double(), atol=0.02)


def test_nothing_is_dropped_in_eval_or_at_zero() -> None:
    x = torch.randn(5, 7)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x


def test_the_seed_decides_and_gradients_pass_where_kept() -> None:
    x = torch.ones(1000, requires_grad=True)
    torch.manual_seed(1)
    first = Dropout(0.3)(x)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.3)(x), first)
    assert not torch.equal(Dropout(0.3)(x), first)
    first.sum().backward()
    assert torch.equal(x.grad, first.detach())
