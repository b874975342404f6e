"""What the record of an epoch is summed up to."""

import numpy as np
import pyarrow as pa

from trainer.recording import is_due, suspect_precision, transition


def test_recorded_after_every_nth_epoch_and_the_last():
    assert [epoch for epoch in range(1, 8) if is_due(3, epoch, 7)] == [3, 6, 7]
    assert [epoch for epoch in range(1, 4) if is_due(10, epoch, 3)] == [3]


def test_transition_is_from_the_prediction_to_the_given_label():
    table = pa.table({"predicted_label": [0, 0, 0, 0, 2, None], "given_label": [0, 1, 1, 2, 0, 2]})
    assert transition(table, 3) == ((0.25, 0.5, 0.25), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0))


def table_of(suspicion, wrong, is_known):
    given = np.arange(len(suspicion)) % 5
    clean = pa.array(given + wrong, mask=~is_known)
    return pa.table({"given_label": given, "clean_label": clean, "suspicion": pa.array(suspicion, from_pandas=True)})


def test_suspect_precision_is_the_share_of_wrong_ones_among_the_hundred_most_suspect():
    """Of the known: 150 of high suspicion with every third wrong, the others of low suspicion and all wrong."""
    order = np.random.default_rng(0).permutation(300)
    suspicion = np.where(np.arange(300) < 150, 1000.0 - np.arange(300), -np.arange(300))[order]
    wrong = np.where(np.arange(300) < 150, np.arange(300) % 3 == 0, True)[order]
    found = suspect_precision(table_of(suspicion, wrong, np.full(300, True)))
    assert found == {"label_noise/suspect_precision_100": 0.34}


def test_suspect_precision_leaves_out_what_is_unknown():
    suspicion = np.array([3.0, 2.0, 1.0, np.nan])
    table = table_of(suspicion, np.array([False, True, False, True]), np.array([False, True, True, True]))
    assert suspect_precision(table) == {"label_noise/suspect_precision_100": 0.5}
    assert suspect_precision(table_of(suspicion, np.ones(4, bool), np.zeros(4, bool))) == {}
