"""The ancestors of a model and the data that they knew."""

import numpy as np

from tokenwm.parent import Parent, data_known_to, lineage, value_ranges, widened_range


def test_every_ancestor_and_its_data_are_remembered() -> None:
    first = {"steps": 10, "data_provenance": {"source": "monday"}, "metrics": {"val/loss": 1.0}}
    parent = Parent(folder="a", model=None, provenance={**first, "weights_sha256": "a1"})  # type: ignore[arg-type]
    second = {
        "weights_sha256": "b2",
        "data_provenance": {"source": "tuesday"},
        "data_mixture": [{"data_provenance": {"source": "simulator"}}, {"data": "old"}],
        "parent": parent.record(),
    }
    third = {
        "data_provenance": {"source": "wednesday"},
        "parent": Parent(folder="b", model=None, provenance=second).record(),  # type: ignore[arg-type]
    }
    assert [each.get("weights_sha256") for each in lineage(third)] == [None, "b2", "a1"]
    assert [data["source"] for data in data_known_to(third)] == [
        *("wednesday", "tuesday", "simulator", "monday")
    ]
    assert "metrics" not in third["parent"]["parent"]  # type: ignore[index]
    for damaged in ({"parent": "x"}, {"data_mixture": 3}, {"data_mixture": [[]]}):
        assert list(data_known_to(damaged)) == []


def test_what_it_was_fine_tuned_on_widens_the_range_that_a_model_knows() -> None:
    monday = {"action": {"min": [0.0, -1.0], "max": [1.0, 1.0]}, "reward": {"min": [0.0]}}
    tuesday = {"action": {"min": [-2.0, 0.0], "max": [0.5, 3.0]}, "state": {"std": [1.0]}}
    assert value_ranges([monday, tuesday]) == {"action": [[-2.0, -1.0], [1.0, 3.0]]}
    child = {"value_ranges": value_ranges([tuesday]), "parent": {"value_ranges": {}}}
    grandchild = {"parent": child, "value_ranges": {"action": [[0.0], [9.0]]}}  # of other size
    bins = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    for provenance in (child, grandchild):
        low, high = widened_range(provenance, "action", *bins)
        assert low.tolist() == [-2.0, -1.0] and high.tolist() == [1.0, 3.0]
    assert widened_range(child, "state", *bins) == bins
    assert widened_range({"value_ranges": None}, "action", *bins) == bins
