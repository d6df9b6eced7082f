"""External ids and titles."""

import logging

import pytest

from cllm4rec_hf import Catalog, PreparedData, UnknownIdError


def make():
    return Catalog(["B2", "B1", "ü"], ["Guitar", None, "Übung"], ["alice", "bob"])


def test_round_trip(tmp_path):
    make().save_pretrained(tmp_path)
    loaded = Catalog.from_pretrained(tmp_path)
    assert (loaded.item_ids, loaded.titles, loaded.user_ids) == (make().item_ids, make().titles, make().user_ids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog_items.parquet", "catalog_users.parquet"]


def test_look_up():
    catalog = make()
    assert catalog.item_indices(["ü", "B2"]) == [2, 0] and catalog.user_indices(["bob"]) == [1]
    assert catalog.find_user("alice") == 0 and catalog.find_user("eve") is None and catalog.find_user(None) is None
    assert [catalog.title(index) for index in range(3)] == ["Guitar", "B1", "Übung"]


def test_unknown_ids(caplog):
    catalog = make()
    asked = ["B1", *(f"x{k}" for k in range(7))]
    with pytest.raises(UnknownIdError, match=r"7 item ids are not in the catalog: 'x0', .*'x4' and 2 more"):
        catalog.item_indices(asked)
    with caplog.at_level(logging.WARNING):
        assert catalog.item_indices(asked, "skip") == [1] and not caplog.records
        assert catalog.item_indices(asked, "warn") == [1] and "passed over" in caplog.text
    with pytest.raises(ValueError, match="unknown must be one of raise, skip, warn"):
        catalog.item_indices(asked, "ignore")


def test_ids_must_be_unique_and_titles_complete():
    with pytest.raises(ValueError, match="item id 'a' occurs twice"):
        Catalog(["a", "b", "a"])
    with pytest.raises(ValueError, match="1 titles for 2 items"):
        Catalog(["a", "b"], ["A"])


def test_catalog_of_prepared_data(prepared):
    data = PreparedData.load(prepared)
    catalog = Catalog.from_prepared(data)
    assert len(catalog) == data.num_items and catalog.user_ids == list(data.users["user_id"])
    assert catalog.item_indices([data.items["item_id"][3]]) == [3]


def test_a_checkpoint_without_a_catalog(tmp_path):
    with pytest.raises(OSError, match="catalog_items"):
        Catalog.from_pretrained(tmp_path)
