"""docs/parity.md, written from what the golden tests measured."""

from collections.abc import Mapping, Sequence

HEAD = """# Parity

Every row compares relook with what the published implementation computed, in float64, on deterministic
weights, images and objects: no trained weights are needed, any wrong line shows. Relative means
|ours - theirs| / (1e-3 + |theirs|); theirs are stored in float32, so an exact implementation differs by up
to 6e-8. The tests allow 1e-6. The largest difference of each kind, rounded up:

"""

TAIL = """
This page is written by the test run: `python -m pytest -m golden --write-parity`. What is compared:

- *raw outputs*: class logits and both point sets (V2: corner and class maps too; CenterNet2: features,
  likelihoods and distances) at every stored location of every level;
- *detections*: final boxes, scores and classes, in the same order;
- *losses*: every term; *gradient norms*: of every trained parameter, one at a time;
- *assignments*: which point stands for which object, in both stages: equal or not;
- *proposals*, *cascade*: of CenterNet2, boxes and scores of the first look; regions, logits and changes of
  every stage of the second;
- *SGD steps*: the total loss before each of five steps with momentum and weight decay.

Real weights on real images (the published AP) are another matter: the figures in [Numbers](numbers.md) are
the publishers' own until somebody measures them again with `relook eval`.
"""


def page(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown of the table; the rows are sorted so that two runs give the same page."""
    columns = sorted({what for kinds in found.values() for what in kinds})
    lines = [f"| case (model) | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for case in sorted(found):
        cells = [_cell(found[case].get(what, ())) for what in columns]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    largest = max(values)
    for bound in (0.0, 1e-7, 1e-6):
        if largest <= bound:
            return "equal" if bound == 0 else f"≤ {bound:.0e}"
    return f"**{largest:.1e}**"
