"""The columns that Celeriac writes for YAML results, as PyYAML reads them."""

from __future__ import annotations

import json

from captures import yaml_pairs


def test_columns_have_the_values_in_the_bodies() -> None:
    pairs = json.loads((yaml_pairs.DATA / "yaml-pairs.json").read_text())
    assert pairs
    assert list(yaml_pairs.differences(pairs)) == []


def test_a_wrong_column_is_found() -> None:
    body = "{task_id: t, status: SUCCESS, result: [1, true, .nan, &a {x: 2001-01-01}, *a]}"
    right = {"body": body, "args": None, "kwargs": None, "meta": "{children: []}"}
    right["result"] = "[1, true, .nan, {x: 2001-01-01}, {x: 2001-01-01}]"
    assert list(yaml_pairs.differences([right])) == []
    for before, after in [("1,", "1.0,"), ("true", "1"), (".nan", "nan"), ("01-01}", "01-02}")]:
        wrong = {**right, "result": right["result"].replace(before, after, 1)}
        assert len(list(yaml_pairs.differences([wrong]))) == 1
