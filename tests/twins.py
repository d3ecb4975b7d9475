"""Slow twins: what each function means, one box at a time, in plain Python."""

import math
from collections.abc import Callable, Sequence

Box = Sequence[float]


def iou(a: Box, b: Box) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / max(union, 1e-6)


def nearest_point(
    points: list[tuple[float, float]],
    level: list[int],
    strides: list[int],
    valid: list[bool],
    boxes: list[Box],
    scale: float,
) -> list[int]:
    """Per point the index of its box, or -1."""
    owner = [-1] * len(points)
    at = [math.inf] * len(points)
    finest = int(math.log2(strides[0]))
    for g, (x1, y1, x2, y2) in enumerate(boxes):
        w, h = max(x2 - x1, 1e-6), max(y2 - y1, 1e-6)
        wanted = int((math.log2(w / scale) + math.log2(h / scale)) / 2) - finest
        wanted = min(max(wanted, 0), len(strides) - 1)
        best, where = math.inf, -1
        for p, (x, y) in enumerate(points):
            if level[p] != wanted or not valid[p]:
                continue
            d = math.sqrt(((x - (x1 + x2) / 2) / w) ** 2 + ((y - (y1 + y2) / 2) / h) ** 2)
            if d < best:
                best, where = d, p
        if where >= 0 and best < at[where]:
            at[where], owner[where] = best, g
    return owner


def max_iou(
    boxes: list[Box], valid: list[bool], truth: list[Box], positive: float, negative: float
) -> list[int]:
    """Per box the index of its ground truth, -1 negative, -2 ignored."""
    answer = [-2] * len(boxes)
    for p, box in enumerate(boxes):
        if not valid[p]:
            continue
        overlaps = [iou(g, box) for g in truth]
        best = max(overlaps, default=-1.0)
        answer[p] = overlaps.index(best) if best >= positive else -1 if best < negative else -2
    for g, box in enumerate(truth):
        mine = {p: iou(box, b) for p, b in enumerate(boxes) if valid[p]}
        for p, overlap in mine.items():
            if overlap == max(mine.values()):
                answer[p] = g
    return answer


def atss(
    boxes: list[Box], lengths: list[int], valid: list[bool], truth: list[Box], candidates: int
) -> list[int]:
    """Per box the index of its ground truth, or -1."""
    owner, best = [-1] * len(boxes), [-math.inf] * len(boxes)
    middle = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
    for g, t in enumerate(truth):
        centre = ((t[0] + t[2]) / 2, (t[1] + t[3]) / 2)
        picks: list[int] = []
        start = 0
        for n in lengths:
            level = [p for p in range(start, start + n) if valid[p]]
            picks += sorted(level, key=lambda p: math.dist(middle[p], centre))[:candidates]
            start += n
        overlaps = [iou(t, boxes[p]) for p in picks]
        mean = sum(overlaps) / len(overlaps)
        spread = math.sqrt(sum((o - mean) ** 2 for o in overlaps) / max(len(overlaps) - 1, 1))
        for p, overlap in zip(picks, overlaps, strict=True):
            x, y = middle[p]
            within = min(x - t[0], y - t[1], t[2] - x, t[3] - y) > 0.01
            if overlap >= mean + spread and within and overlap > best[p]:
                best[p], owner[p] = overlap, g
    return owner


def class_nms(
    boxes: list[Box], scores: list[list[float]], score: float, threshold: float, keep: int
) -> list[tuple[int, int]]:
    """(row, label) of the survivors, best first."""
    pairs = [(s, r, c) for r, row in enumerate(scores) for c, s in enumerate(row) if s > score]
    kept: list[tuple[int, int]] = []
    for _, row, label in sorted(pairs, reverse=True):
        if all(c != label or iou(boxes[r], boxes[row]) <= threshold for r, c in kept):
            kept.append((row, label))
    return kept[:keep]


def per_class_nms(
    boxes: list[Box],
    scores: list[list[float]],
    score: float,
    threshold: float,
    top: int,
    keep: int,
    plus: float,
) -> list[tuple[float, int, int]]:
    """(score, label, row) of the survivors of each class, with caps for each, best first of all."""
    answer: list[tuple[float, int, int]] = []
    grown = [[x1, y1, x2 + plus, y2 + plus] for x1, y1, x2, y2 in boxes]
    for label in range(len(scores[0])):
        rows = [r for r in range(len(boxes)) if scores[r][label] > score]
        rows.sort(key=lambda r: -scores[r][label])
        kept: list[int] = []
        for row in rows[:top]:
            if all(iou(grown[other], grown[row]) <= threshold for other in kept):
                kept.append(row)
        answer += [(scores[row][label], label, row) for row in kept[:keep]]
    return sorted(answer, key=lambda one: -one[0])


def giou_plus_one(a: Box, b: Box) -> float:
    def extent(low: float, high: float) -> float:
        return high - low + 1

    inter = max(0.0, extent(max(a[0], b[0]), min(a[2], b[2]))) * max(
        0.0, extent(max(a[1], b[1]), min(a[3], b[3]))
    )
    hull = max(0.0, extent(min(a[0], b[0]), max(a[2], b[2]))) * max(
        0.0, extent(min(a[1], b[1]), max(a[3], b[3]))
    )
    union = extent(a[0], a[2]) * extent(a[1], a[3]) + extent(b[0], b[2]) * extent(b[1], b[3]) - inter + 1e-6
    hull += 1e-6
    return 1 - (inter / union - (hull - union) / hull)


def gaussian_radius(w: float, h: float, overlap: float) -> float:
    """How far a corner may move along the diagonal, found by halving: the least of three ways to move."""

    def least(overlap_of: Callable[[float], float], most: float) -> float:
        low, high = 0.0, most
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if overlap_of(middle) > overlap else (low, middle)
        return low

    area = w * h
    return min(
        least(lambda r: (w - r) * (h - r) / (2 * area - (w - r) * (h - r)), min(w, h)),
        least(lambda r: (w - 2 * r) * (h - 2 * r) / area, min(w, h) / 2),
        least(lambda r: area / ((w + 2 * r) * (h + 2 * r)), 100 * max(w, h)),
    )


def corners(
    points: list[tuple[float, float]],
    level: list[int],
    valid: list[bool],
    at: list[tuple[float, float]],
    reach: list[float],
) -> tuple[list[float], list[int]]:
    """Per point its heat and the index of the corner that it is nearest to on its level, or -1."""
    heat, owner = [0.0] * len(points), [-1] * len(points)
    for g, (corner, r) in enumerate(zip(at, reach, strict=True)):
        sigma = (2 * r + 1) / 6
        for p, point in enumerate(points):
            d = math.dist(point, corner)
            if valid[p] and d < r:
                heat[p] = max(heat[p], math.exp(-d * d / (2 * sigma * sigma)))
        for one in set(level):
            mine = [p for p in range(len(points)) if level[p] == one and valid[p]]
            owner[min(mine, key=lambda p: math.dist(points[p], corner))] = g
    return [1.0 if o >= 0 else h for h, o in zip(heat, owner, strict=True)], owner


def semantic(
    shapes: list[tuple[int, int]], own: tuple[int, int], boxes: list[Box], labels: list[int], classes: int
) -> list[list[float]]:
    """Per point the weight of each class: boxes drawn from the largest to the smallest, then resampled."""
    h, w = shapes[0]
    drawn = [[[0.0] * classes for _ in range(w)] for _ in range(h)]
    for (x1, y1, x2, y2), label in sorted(
        zip(boxes, labels, strict=True), key=lambda b: -(b[0][2] - b[0][0]) * (b[0][3] - b[0][1])
    ):
        for i in range(int(y1 / 8), min(int(y2 / 8), own[0] - 1) + 1):
            for j in range(int(x1 / 8), min(int(x2 / 8), own[1] - 1) + 1):
                drawn[i][j][label] = 1 / ((x2 - x1) * (y2 - y1))
    return [
        drawn[i * h // rows][j * w // columns]
        for rows, columns in shapes
        for i in range(rows)
        for j in range(columns)
    ]
