"""The streamed COCO file of detections."""

import json
import tracemalloc
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from relook.results.coco_file import CocoFile

ROW = {"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}


def test_the_file_is_what_coco_tools_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Images, annotations and categories refer to each other; images without objects are listed."""
    path = tmp_path / "found.json"
    with CocoFile(path, ("cat", "dög")) as file:
        file.add("a.jpg", height=10, width=20, found=[ROW, ROW])
        file.add("b/ü.jpg", height=5, width=6, found=[])
        file.add("c.jpg", height=7, width=8, found=[ROW])
    coco = COCO(str(path))
    capsys.readouterr()
    assert [i["file_name"] for i in coco.dataset["images"]] == ["a.jpg", "b/ü.jpg", "c.jpg"]
    assert [a["image_id"] for a in coco.dataset["annotations"]] == [1, 1, 3]
    assert [a["id"] for a in coco.dataset["annotations"]] == [1, 2, 3]
    assert coco.dataset["annotations"][0]["area"] == 12
    assert coco.dataset["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dög"}]


def test_an_empty_file_is_whole(tmp_path: Path):
    """No image at all."""
    with CocoFile(tmp_path / "a.json", ("cat",)):
        pass
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [],
        "images": [],
    }


def test_nothing_is_left_when_the_work_fails(tmp_path: Path):
    """Neither half a file nor the temporary one."""

    def fail() -> None:
        with CocoFile(tmp_path / "a.json", ("cat",)) as file:
            file.add("a.jpg", height=1, width=1, found=[ROW])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow(tmp_path: Path):
    """Ten thousand images take no more than a hundred."""
    peaks = []
    for count in (100, 10_000):
        tracemalloc.start()
        with CocoFile(tmp_path / "a.json", ("cat",)) as file:
            for i in range(count):
                file.add(f"{i}.jpg", height=1, width=1, found=[ROW])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000
