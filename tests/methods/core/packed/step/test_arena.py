"""Buffers whose lives overlap never share memory."""

from hypothesis import given
from hypothesis import strategies as st

from quantarena.methods.core.packed.step.arena import ALIGNMENT, aligned, extent, place

LIVES = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 8)), min_size=1, max_size=40
)


@given(LIVES)
def test_overlapping_lives_have_their_own_memory(drawn):
    sizes = {n: size for n, (size, _, _) in enumerate(drawn)}
    lives = {n: (first, first + length) for n, (_, first, length) in enumerate(drawn)}
    offsets = place(sizes, lives)
    assert offsets.keys() == sizes.keys()
    for one in offsets:
        assert offsets[one] % ALIGNMENT == 0
        assert offsets[one] + sizes[one] <= extent(sizes, offsets)
        for other in offsets:
            apart = lives[one][1] < lives[other][0] or lives[other][1] < lives[one][0]
            if one == other or apart or not sizes[one] or not sizes[other]:
                continue
            first, second = sorted((one, other), key=lambda n: offsets[n])
            assert offsets[first] + aligned(sizes[first]) <= offsets[second]


def test_memory_is_used_again():
    sizes = dict.fromkeys(range(10), 1000)
    lives = {n: (n, n + 1) for n in range(10)}
    assert extent(sizes, place(sizes, lives)) == 2 * aligned(1000)
