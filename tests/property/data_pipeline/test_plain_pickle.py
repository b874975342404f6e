"""Whatever a pickle holds, reading it gives plain values or a refusal, and never runs anything."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cifar_files import python2_array, python2_dict, python2_list, python2_string
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipeline.sources.plain_pickle import UnexpectedPickleError, load_plain

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)
arrays = hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=5))


@given(st.dictionaries(st.text(max_size=6), values, max_size=4), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_what_unpickling_gives(entries, protocol):
    assert load_plain(pickle.dumps(entries, protocol)) == entries


@given(arrays, st.binary(min_size=1, max_size=300), st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_arrays_of_bytes_and_byte_strings(array, text, protocol):
    read = load_plain(pickle.dumps({"array": array, "text": text}, protocol))
    np.testing.assert_array_equal(read["array"], array)
    assert read["array"].dtype == np.uint8
    assert read["text"] == text.decode("latin-1")


SMALL = python2_dict(
    {"data": python2_array(np.arange(12, dtype=np.uint8).reshape(3, 4)), "names": python2_list([python2_string("a")])}
)


def test_what_python_2_wrote_is_what_unpickling_gives():
    unpickled = pickle.loads(SMALL, encoding="latin-1")
    read = load_plain(SMALL)
    assert read["names"] == unpickled["names"] == ["a"]
    np.testing.assert_array_equal(read["data"], unpickled["data"])


@given(st.data())
def test_damage_is_refused_or_harmless(data):
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        load_plain(bytes(damaged))
    except UnexpectedPickleError:
        event("refused")


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_read(data):
    try:
        load_plain(b"\x80\x02}" + data)
    except UnexpectedPickleError:
        event("refused")


class Touches:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_not_run(tmp_path, protocol):
    path = tmp_path / "made"
    content = pickle.dumps({"data": Touches(str(path))}, protocol)
    with pytest.raises(UnexpectedPickleError, match=r"asks for '_?io\.open', which is neither"):
        load_plain(content)
    assert not path.exists()
    pickle.loads(content)["data"].close()
    assert path.exists()  # the same bytes do run when they are unpickled


def test_a_key_that_would_take_for_ever_to_hash_is_refused():
    """Sixty pairs, each of the one before twice."""
    pairs = b"".join(bytes((*b"h", number, *b"h", number, *b"\x86q", number + 1)) for number in range(60))
    with pytest.raises(UnexpectedPickleError, match="a key is neither text nor number"):
        load_plain(b"\x80\x02U\x01aq\x00" + pairs + b"}h\x3cU\x01bs.")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.arange(3.0), "an array of 'f8', not of bytes"),
        (np.array([{}], dtype=object), "not of bytes"),
        (np.asfortranarray(np.zeros((2, 3), np.uint8)), "order"),
        ({1, 2}, "asks for"),
        (3.5, "asks for"),
        (Touches, "asks for '.*Touches'"),
    ],
    ids=["floats", "objects", "fortran", "set", "float", "class"],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_is_not_plain_is_refused(value, message, protocol):
    with pytest.raises(UnexpectedPickleError, match=message):
        load_plain(pickle.dumps({"data": value}, protocol))
