"""COCO's format: annotations/instances_NAME.json, and a folder of pictures for each split."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relook.data.sample import Sample
from relook.data.writing.kinds import Split, Writer, is_sound


def _write(out: Path, splits: Sequence[Split]) -> list[str]:
    """One file for each split; image and category ids are the data's own."""
    (out / "annotations").mkdir()
    for split in splits:
        source = split.source
        whole: dict[str, list[Any]] = {
            "images": [
                {"id": sample.id, "file_name": name, "height": sample.height, "width": sample.width}
                for sample, name in split.rows()
            ],
            "annotations": [],
            "categories": [
                {"id": key, "name": name}
                for key, name in zip(source.category_ids, source.classes, strict=True)
            ],
        }
        for sample, _ in split.rows():
            for row in range(len(sample.labels)):
                number = len(whole["annotations"]) + 1
                whole["annotations"].append({"id": number, **_row(sample, row, source.category_ids)})
        file = out / "annotations" / f"instances_{split.name}.json"
        file.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    return []


def _row(sample: Sample, row: int, category_ids: Sequence[int]) -> dict[str, Any]:
    x1, y1, x2, y2 = sample.boxes[row].tolist()
    found: dict[str, Any] = {
        "image_id": sample.id,
        "category_id": category_ids[int(sample.labels[row])],
        "bbox": [round(value, 9) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": float(sample.area[row]),
        "iscrowd": int(sample.crowd[row]),
    }
    if sample.ignore[row]:
        found["ignore"] = 1
    segmentation = sample.segmentation[row] if sample.segmentation else None
    if segmentation is not None and is_sound(segmentation, sample):
        found["segmentation"] = segmentation
    return found


COCO = Writer(images=lambda split: "images" if split == "all" else split, write=_write)
