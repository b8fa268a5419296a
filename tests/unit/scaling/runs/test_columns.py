"""Columns are guessed where a name says enough, and never against what it says."""

import pytest

from tokenwm.errors import TokenwmError
from tokenwm.scaling.runs.columns import choose_columns


def chosen_from(header: str) -> dict[str, str]:
    return choose_columns(header.split(","), {}, [])[0]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "held_out", ["val_loss", "validation loss", "test_loss", "eval/loss", "ValLoss"]
)
@pytest.mark.parametrize("other", ["train_loss", "loss", "training_loss", "final train loss"])
def test_a_held_out_loss_goes_before_any_other(held_out: str, other: str, order: int) -> None:
    header = ",".join(["params", "tokens", held_out, other][::order])
    assert chosen_from(header) == {"N": "params", "D": "tokens", "loss": held_out}


@pytest.mark.parametrize("name", ["train_loss", "training_loss", "final flops", "Final Compute"])
def test_neither_a_training_loss_nor_flops_are_taken_for_the_loss(name: str) -> None:
    with pytest.raises(TokenwmError, match=r"no column for loss among .*map it"):
        chosen_from(f"N,D,{name}")


@pytest.mark.parametrize("other", ["speed", "patch", "stats", "tokens/s", "tokens per sec", ""])
def test_a_column_that_is_merely_near_is_left_alone(other: str) -> None:
    assert chosen_from(f"N,C,loss,{other}") == {"N": "N", "C": "C", "loss": "loss"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Params (M)", "N"),
        ("Parameters (millions)", "N"),
        ("paramsB", "N"),
        ("model_size_1e6", "N"),
        ("params / 10^6", "N"),
        ("log_params", "N"),
        ("Tokens (B)", "D"),
        ("Training tokens [billion]", "D"),
        ("Gtokens", "D"),
        ("GFLOPs", "C"),
        ("train_petaflops", "C"),
        ("compute (T)", "C"),
        ("val loss (bits)", "loss"),
    ],
)
def test_other_units_are_read_only_if_asked_for(name: str, key: str) -> None:
    header = [name, *(other for other in ("N", "D", "C", "loss") if other != key)]
    with pytest.raises(TokenwmError, match=rf"is near {key}, but .*not in plain units.*--columns"):
        choose_columns(header, {}, [])
    chosen, notes = choose_columns(header, {key: name}, [])
    assert chosen[key] == name
    assert any(f"is read for {key} as it stands" in note for note in notes)


def test_a_column_in_plain_units_goes_before_one_in_others() -> None:
    assert chosen_from("Params (M),params,D,loss,tokens_B")["N"] == "params"
