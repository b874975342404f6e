"""Ids made of paths: allowed, different, and the same again."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sources.example_ids import example_ids

PARTS = st.text(st.sampled_from("ab-_.é /\n"), min_size=1, max_size=4) | st.text(min_size=1, max_size=90)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join).filter(lambda path: path.strip("/."))


@given(st.lists(PATHS, max_size=30, unique=True))
def test_ids_are_allowed_and_different(paths):
    ids = example_ids([f"{path}.jpg" for path in paths])
    assert all(re.fullmatch(r"[A-Za-z0-9_,=+@-]{1,80}", example_id) for example_id in ids)
    assert len(set(ids)) == len(paths)


@given(st.lists(st.from_regex(r"[a-z0-9_]{1,9}(/[a-z0-9_]{1,9}){0,3}", fullmatch=True), max_size=30, unique=True))
def test_plain_paths_are_their_own_ids(paths):
    assert example_ids([f"{path}.png" for path in paths]) == [path.replace("/", "-") for path in paths]


@given(st.lists(PATHS, min_size=2, max_size=20, unique=True), st.randoms())
def test_ids_do_not_depend_on_the_order(paths, random):
    by_path = dict(zip(paths, example_ids(paths), strict=True))
    random.shuffle(paths)
    assert dict(zip(paths, example_ids(paths), strict=True)) == by_path
