"""Windows over a document: every token but the first is counted once, with as much before it as the stride allows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_patch.evaluate.sequences import windows


@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_each_token_is_counted_once(size, length, data):
    stride = data.draw(st.integers(1, length))
    ids = np.arange(1000, 1000 + size)
    counted = []
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=5)))
    for number, window in enumerate(windows(np.split(ids, cuts), length, stride)):
        assert 1 <= len(window.tokens) == len(window.labels) <= length
        begin = int(window.tokens[0]) - 1000
        assert begin == number * stride
        for place in np.flatnonzero(window.labels >= 0):
            assert window.labels[place] == window.tokens[place] + 1
            # Without the beginning of its document before it, a token has at least all that its window does not step
            # over.
            assert begin == 0 or place >= length - stride
            counted.append(int(window.labels[place]))
    assert counted == ids[1:].tolist()
