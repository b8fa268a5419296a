"""A world model that begins from a parent: what is taken over, widened, refused and continued."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.small_models import binning, shake, small_world_model
from tests.small_runs import assert_resume_is_exact, run
from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import CheckpointError
from tokenwm.parent import Parent
from tokenwm.sequence.token_shards import read_vocabulary
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.training import OptimizerConfig
from tokenwm.transformer.fine_tuning import begin_from
from tokenwm.transformer.heads import RewardHead
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.training import WorldModelModule
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")

DATA = Manifest(
    kind="tokens",
    name="today",
    control_rate=10.0,
    features={},
    statistics={},
    shards=[],
    episodes=[],
    extra={"cameras": ["left", "right"]},
)


def parent_of(model: WorldModel, **changes: object) -> Parent:
    values = {"folder": "monday", "provenance": {"weights_sha256": "ab12"}, **changes}
    return Parent(model=model, cameras=("left", "right"), control_rate=10.0, **values)  # type: ignore[arg-type]


def of_vocabulary(model: WorldModel, **changes: object) -> WorldModel:
    return WorldModel(model.config, replace(model.vocabulary, **changes))  # type: ignore[arg-type]


def wider(model: WorldModel) -> WorldModel:
    assert isinstance(model.vocabulary.action, BinTokenizer)
    action = replace(model.vocabulary.action, edges=2.0 * model.vocabulary.action.edges)
    return of_vocabulary(model, action=action)


def test_all_weights_are_the_parents_and_another_tokenizer_is_no_obstacle() -> None:
    old, new = small_world_model(seed=1, dropout=0), small_world_model(seed=2, dropout=0)
    new = of_vocabulary(new, tokenizer_hash="fine-tuned", reward_range=(0.0, 1.0))
    begin_from(parent_of(old), new, DATA)
    for name, weight in new.state_dict().items():
        assert torch.equal(weight, old.state_dict()[name]), name
    assert new.vocabulary.reward_range == (-2.0, 3.0)  # the new data need less
    assert new.vocabulary.tokenizer_hash == "fine-tuned"


@pytest.mark.parametrize(
    ("child", "data", "message"),
    [
        (
            wider,
            DATA,
            "its bins of action are others .*'tokenwm tokenize … --vocabulary-of monday'",
        ),
        (
            lambda model: of_vocabulary(model, action=binning(4)),
            DATA,
            "its bins of action are others",
        ),
        (
            lambda model: of_vocabulary(model, state=replace(binning(2, 8), units="m")),
            DATA,
            "state is .* there and .*'units': 'm'",
        ),
        (lambda model: of_vocabulary(model, grid=(2, 3)), DATA, "grid is .2, 2. there and .2, 3."),
        (
            lambda model: of_vocabulary(model, has_reward=False),
            DATA,
            "has_reward is True there and False here",
        ),
        (
            lambda model: small_world_model(num_layers=2),
            DATA,
            "transformer.num_layers is 3 there and 2 here; leave it away",
        ),
        (
            lambda model: small_world_model(draft_layers=1),
            DATA,
            "draft_layers is 0 there and 1 here",
        ),
        (
            lambda model: WorldModel(replace(model.config, code_rows=True), model.vocabulary),
            DATA,
            "code_rows is False there and True here",
        ),
        (small_world_model, replace(DATA, control_rate=5.0), "control_rate is 10.0 there and 5.0"),
        (
            lambda model: small_world_model(),
            replace(DATA, extra={"cameras": ["left", "wrist"]}),
            "the cameras are .'left', 'right'. there and .'left', 'wrist'. here; name the same",
        ),
    ],
    ids=["edges", "size", "units", "grid", "reward", "layers", "draft", "rows", "rate", "cameras"],
)
def test_what_means_something_else_is_refused(
    child: Callable[[WorldModel], WorldModel], data: Manifest, message: str
) -> None:
    old = small_world_model()
    model = small_world_model() if child is small_world_model else child(old)
    with pytest.raises(CheckpointError, match=f"training cannot begin from monday: .*{message}"):
        begin_from(parent_of(old), model, data)


def test_a_wider_range_of_rewards_leaves_what_the_head_knows() -> None:
    torch.manual_seed(0)
    head = RewardHead(8, (-1.0, 1.0))
    with torch.no_grad():  # as learned from rewards of -1, 0 and 1
        head.logits.bias.fill_(-15.0)
        known = torch.tensor([0, 127, 254])
        head.logits.bias[known] = 0.0
        head.logits.weight[known] = torch.randn(3, 8)
    hidden = torch.randn(64, 8)
    before: Tensor = head(hidden)
    assert before.std() > 0.3
    head.widen((-1.0, 10.0))
    assert (head.bins[0], head.bins[-1]) == (-1.0, 10.0)
    torch.testing.assert_close(head(hidden), before, atol=0.02, rtol=0)
    assert head.loss(hidden, torch.full((64,), 9.0)).isfinite().all()
    still = RewardHead(8, (0.0, 0.0))  # no reward was ever given
    still.widen((0.0, 1.0))
    assert 0.0 <= float(still(hidden).detach().max()) < 0.01


def test_a_fine_tuned_run_is_resumed_exactly_and_begins_where_its_parent_is(
    tmp_path: Path, token_shards: Path
) -> None:
    sizes = TransformerConfig(dim=16, num_layers=2, num_heads=2, window=2, dropout=0.2)
    config = WorldModelConfig(transformer=sizes)
    vocabulary = read_vocabulary(Manifest.load(token_shards), "here")
    torch.manual_seed(5)
    old = WorldModel(config, replace(vocabulary, reward_range=(-1.0, 30.0)))
    shake(old)
    data = Manifest.load(token_shards)
    parent = replace(parent_of(old), cameras=data.cameras)

    def make() -> WorldModelModule:
        module = WorldModelModule(config, OptimizerConfig(learning_rate=1e-9, warmup_steps=0))
        module.parent = parent
        return module

    found = assert_resume_is_exact(tmp_path, make, token_shards)
    for name, weight in old.state_dict().items():
        torch.testing.assert_close(found[f"world_model.{name}"], weight, atol=1e-6, rtol=0)
    other = make()
    other.parent = replace(parent, provenance={"weights_sha256": "cd34"})
    refusal = r"the model to begin from .--from. is cd34, but ab12 in the run to be continued"
    for begin, said in ((other, refusal), (WorldModelModule(config), "--from. is None, but ab12")):
        with pytest.raises(CheckpointError, match=said):
            run(tmp_path, begin, token_shards, max_steps=6, resume_from=tmp_path / "step=3.ckpt")
