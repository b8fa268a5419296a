import numpy as np
import pytest
import torch

from tests.toy_world import CELLS, ToyWorld
from tokenwm.control.proposals import ActionSpace, Given, Together, coloured_noise, policy_chunks
from tokenwm.errors import TokenwmError
from tokenwm.imagination.world import Observation
from tokenwm.tokenizer.actions import BinTokenizer


def test_the_space_is_that_of_the_training_data() -> None:
    space = ActionSpace.of(ToyWorld(chunk=2).vocabulary)
    assert space.low.tolist() == [-2.0, -2.0] and space.high.tolist() == [2.0, 2.0]
    # Even bins: the middle of the range, and the deviation of an even distribution over it.
    torch.testing.assert_close(space.mean, torch.zeros(2))
    torch.testing.assert_close(space.std, torch.full((2,), 4.0 / 12.0**0.5))
    ids = ActionSpace.of(ToyWorld(discrete=True).vocabulary)
    assert ids.is_discrete and ids.low.tolist() == [0] and ids.high.tolist() == [4]
    assert ids.clamp(torch.tensor([[-1], [7]])).tolist() == [[0], [4]]


def test_bins_beyond_the_data_do_not_count() -> None:
    quantiles = np.array([[0.0, 0.1, 0.2, 0.3, 10.0]])
    action = BinTokenizer.fit(quantiles, num_bins=4, method="quantile", margin=1.0)
    vocabulary = ToyWorld().vocabulary
    space = ActionSpace.of(
        type(vocabulary).from_dict(vocabulary.to_dict() | {"action": action.to_dict()})
    )
    assert (float(space.low), float(space.high)) == (0.0, 10.0)
    assert float(space.mean) == pytest.approx((0.05 + 0.15 + 0.25 + 5.15) / 4)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("horizon", [4, 5])
def test_noise_has_unit_variance_and_hangs_together(horizon: int, exponent: float) -> None:
    space = ActionSpace.of(ToyWorld(chunk=3).vocabulary)  # one dimension, three actions a step
    noise = coloured_noise(torch.Generator().manual_seed(0), 20_000, horizon, space, exponent)
    assert noise.shape == (20_000, horizon, 3)
    path = noise.flatten(1)  # the robot's actions one after another
    assert abs(float(path.mean())) < 0.02
    torch.testing.assert_close(path.var(0), torch.ones(horizon * 3), rtol=0.06, atol=0.0)
    beside = float((path[:, 1:] * path[:, :-1]).mean())
    across = float((noise[:, 1:, 0] * noise[:, :-1, 2]).mean())  # from one step into the next
    low, high = {0.0: (-0.03, 0.03), 1.0: (0.4, 0.8), 2.0: (0.65, 0.98)}[exponent]
    assert low < beside < high and low < across < high


def test_sequences_of_anybody_become_those_of_the_world() -> None:
    space = ActionSpace.of(ToyWorld(chunk=2).vocabulary)
    single = torch.tensor([[[0.1], [0.2], [0.3], [9.0]]])  # four actions of the robot
    expected = torch.tensor([[[0.1, 0.2], [0.3, 2.0], [0.3, 2.0]]])
    torch.testing.assert_close(space.sequences(single, 3), expected)
    torch.testing.assert_close(space.sequences(expected.numpy(), 1), expected[:, :1])
    for wrong in (torch.zeros(1, 3, 1), torch.zeros(1, 2, 3), torch.zeros(1, 0, 2), torch.zeros(2)):
        with pytest.raises(TokenwmError, match=r"expected \(n, steps, 2\) or \(n, steps \* 2, 1\)"):
            space.sequences(wrong, 3)


def test_a_policy_proposes_as_many_chunks_as_are_wanted() -> None:
    class Draws:
        def begin(self, num_rows: int, seed: int) -> torch.Generator:
            return torch.Generator().manual_seed(seed)

        def act(
            self, observation: Observation, memory: torch.Generator
        ) -> tuple[torch.Tensor, torch.Generator]:
            assert observation.state is not None
            drawn = torch.rand(len(observation.frames), 4, 1, generator=memory)
            return observation.state[:, None] + drawn, memory

    frames = torch.zeros(1, 1, 1, CELLS, 3, dtype=torch.uint8)
    seen = Observation(frames=frames, state=torch.tensor([[5.0]]))
    chunks = policy_chunks(Draws(), seen, 3, seed=1)
    assert chunks.shape == (3, 4, 1) and len(chunks.unique(dim=0)) == 3
    assert (chunks >= 5.0).all()
    generator = torch.Generator()
    assert torch.equal(Given(chunks)(ToyWorld(), None, generator, 2, 9), chunks[:2])
    with pytest.raises(TokenwmError, match="expected"):
        Given(torch.zeros(3))


def test_proposals_together_fill_each_other_up() -> None:
    one, many = Given(torch.ones(1, 1, 1)), Given(torch.arange(6.0).reshape(3, 2, 1))
    world = ToyWorld()
    state = world.start(world.context(torch.tensor([[8.0]])))
    generator = torch.Generator()
    proposed = Together(one, many)(world, state, generator, 3, 2)
    assert proposed[:, :, 0].tolist() == [[1.0, 1.0], [0.0, 1.0], [2.0, 2.0]]  # 3 is out of bounds
    assert len(Together(one, many)(world, state, generator, 1, 2)) == 1
    assert Together(many)(world, state, generator, 9, 2).shape == (3, 2, 1)
    with pytest.raises(TokenwmError, match="at least one proposal"):
        Together()
