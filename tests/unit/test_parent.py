"""The ancestors of a model and the data that they knew."""

from tokenwm.parent import Parent, data_known_to, lineage


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
