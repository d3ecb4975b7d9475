"""What hypothesis draws: boxes as they come, nasty ones included."""

import torch
from hypothesis import strategies as st
from torch import Tensor

# no sides so thin that moving a box by a hundred pixels makes them nothing
coordinate = st.integers(0, 128 * 1024).map(lambda n: n / 1024) | st.integers(0, 128).map(float)


@st.composite
def box_lists(draw: st.DrawFn, *, least: int = 0, most: int = 6, sorted_corners: bool = True) -> Tensor:
    """[n, 4] boxes: empty, touching, equal, one-pixel; inverted too when corners are not sorted."""
    count = draw(st.integers(least, most))
    rows = [draw(st.tuples(coordinate, coordinate, coordinate, coordinate)) for _ in range(count)]
    if rows and draw(st.booleans()):
        rows[-1] = rows[0]
    if sorted_corners:
        rows = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in rows]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
