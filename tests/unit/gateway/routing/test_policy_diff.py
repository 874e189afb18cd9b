"""Is what differs between two policies told by meaning, whatever the texts look like?"""

import pytest

from gateway.errors import ConfigurationError
from gateway.routing.policy_diff import Difference, Kind, diff_policies, shown

NAMES = ("one", "other")


def differences(before: str, after: str) -> tuple[Difference, ...]:
    return diff_policies(before, after, names=NAMES).differences


def test_keys_are_added_removed_and_changed_at_any_depth() -> None:
    assert differences("a: {b: 1, c: 2}\nd: x", "a: {b: 3, e: null}\nd: x") == (
        Difference("a.b", Kind.CHANGED, 1, 3),
        Difference("a.c", Kind.REMOVED, 2, None),
        Difference("a.e", Kind.ADDED, None, None),
    )


def test_order_of_keys_comments_and_layout_mean_nothing_but_are_in_the_text() -> None:
    found = diff_policies("a: 1\nb: [x, y]\n", "# why\nb:\n  - x\n  - y\na: 1\n", names=NAMES)
    assert found.differences == ()
    assert found.text.startswith("--- one\n+++ other\n@@")
    assert diff_policies("a: 1\n", "a: 1\n", names=NAMES).text == ""


def test_the_order_of_a_list_means_something() -> None:
    assert differences("a: [x, y]", "a: [y, x]") == (Difference("a", Kind.CHANGED, ["x", "y"], ["y", "x"]),)


def test_entries_with_names_are_found_by_them_and_their_order_is_told() -> None:
    before = "rules: [{name: one, to: p}, {name: two, to: p}, {name: gone}]"
    after = "rules: [{name: two, to: q}, {name: one, to: p}, {name: new}]"
    assert differences(before, after) == (
        Difference("rules.[two].to", Kind.CHANGED, "p", "q"),
        Difference("rules.[gone]", Kind.REMOVED, {"name": "gone"}, None),
        Difference("rules.[new]", Kind.ADDED, None, {"name": "new"}),
        Difference("rules (order)", Kind.CHANGED, ["[one]", "[two]"], ["[two]", "[one]"]),
    )


def test_what_is_equal_in_python_alone_differs() -> None:
    assert differences("a: 1", "a: true") == (Difference("a", Kind.CHANGED, 1, True),)
    assert differences("a: 1", "[1]") == (Difference("everything", Kind.CHANGED, {"a": 1}, [1]),)


def test_what_is_no_yaml_is_said_with_its_line() -> None:
    with pytest.raises(ConfigurationError, match=r"^other:2: not valid YAML"):
        diff_policies("a: 1", "a: 1\n  b: {", names=NAMES)


def test_a_value_on_one_line() -> None:
    assert [shown(each) for each in ("plain", 1, None, ["a", 2])] == ["plain", "1", "null", '["a", 2]']
