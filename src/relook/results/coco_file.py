"""A COCO file of detections, written as they come: memory does not grow with the number of images."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from relook.files import whole_file
from relook.rle import area

_SURROGATE = re.compile("[\ud800-\udfff]")


class CocoFile:
    """Images, annotations and categories in one file, which appears whole when it is closed.

        with CocoFile("found.json", ("cat", "dog")) as file:
            file.add("a.jpg", height=480, width=640, found=found.to_coco())

    Category ids are label + 1, as `Result.to_coco` writes them.
    """

    def __init__(self, path: Path | str, classes: Sequence[str]) -> None:
        self.path = Path(path)
        self.classes = tuple(classes)
        self.images = self.annotations = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._beside = self._open.enter_context(whole_file(self.path))
        self._main = self._open.enter_context(self._beside.open("w", encoding="utf-8"))
        # images are listed beside, because both lists grow at once and a file has one end
        self._listed = self._open.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, start=1)]
        self._main.write('{"categories": ' + _text(categories) + ',\n"annotations": [')
        return self

    def add(self, file_name: str, *, height: int, width: int, found: Sequence[Mapping[str, Any]]) -> None:
        """One image and what was found in it; `found` holds COCO results, whose image_id is set here."""
        self.images += 1
        image = {"id": self.images, "file_name": file_name, "height": height, "width": width}
        self._listed.write(("," if self.images > 1 else "") + "\n" + _text(image))
        for row in found:
            self.annotations += 1
            whole = {"id": self.annotations, **row, "image_id": self.images, "iscrowd": 0}
            runs = row.get("segmentation")
            whole["area"] = round(row["bbox"][2] * row["bbox"][3], 3) if runs is None else area(runs)
            self._main.write(("," if self.annotations > 1 else "") + "\n" + json.dumps(whole))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._open.__exit__(kind, error, trace)
            return
        with self._open:
            self._listed.seek(0)
            self._main.write('\n],\n"images": [')
            shutil.copyfileobj(self._listed, self._main)
            self._main.write("\n]}\n")
            self._main.flush()


def _text(value: object) -> str:
    """JSON in plain letters; a name that is no text, as disks may have it, is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or not _SURROGATE.search(text) else json.dumps(value)
