"""Dotted and nested keys are one."""

from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.extras.keys import flat, value_at, with_keys

values = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
words = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(values, lambda inner: st.dictionaries(words, inner, max_size=3), max_leaves=8).filter(
    lambda tree: isinstance(tree, dict)
)


@given(trees, trees)
def test_keys_set_are_keys_found(raw, keys):
    found = dict(flat(with_keys(raw, keys)))
    for path, value in flat(keys):
        assert found[path] == value


def test_dotted_and_nested_keys_are_one():
    assert with_keys({"a": {"b": 1, "c": 2}}, {"a.b": 3}) == with_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


def test_a_value_is_found_at_its_path_or_is_none():
    nested = {"a": {"b": 1}, "c": None}
    assert (value_at(nested, "a.b"), value_at(nested, "a")) == (1, {"b": 1})
    assert [value_at(nested, path) for path in ("a.x", "a.b.c", "c", "c.d", "x")] == [None] * 5
