"""Data sets that were damaged: by the byte, by the value, by the file. What hypothesis draws of them."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

Files = dict[str, bytes]

HOSTILE_TEXT = (
    *(
        "",
        " ",
        "nan",
        "-nan",
        "inf",
        "1e400",
        "-1",
        "0",
        "1.0",
        "3000000000",
        "9" * 400,
        "0x10",
        "1_000",
        "\u0661",
    ),
    *(
        "null",
        "true",
        "[]",
        "{}",
        "..",
        "/",
        "/dev/zero",
        "\\",
        "%00",
        "%2e%2e%2f",
        "a" * 5000,
        "é",
        "\u202e",
    ),
    *("\x00", "\x1b[31m", "\r", "\n", "\ufeff", "&a", "*a", "!!python/name:os.system", "<<", "- - -", "&x;"),
)
HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.0, 0.5, 10**10, 10**30, 10**400, -(2**63), 2**63, 1e308, 5e-324),
    *(float("nan"), float("inf"), "", "0", "1", "a", "a" * 5000, "\x00", "\ud800", "../../x", "/dev/zero"),
    *([], [[]], [None], [1], [1, 2, 3, 4], [1e308] * 4, [-5, -5, 2, 2], [[1, 2]], [[1] * 6], [["a"] * 6]),
    *({}, {"a": 1}, {"size": [48, 64], "counts": "x"}, {"size": [48, 64], "counts": [10**12]}, {"size": 1}),
    {"size": [48, 64], "counts": [3072]},
)
HOSTILE_BYTES = (
    *(
        b"",
        b"\x00",
        b"\xff",
        b"\xfe\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\r",
        b"<",
        b"&",
        b"{",
        b"]",
        b'"',
    ),
    *(
        b"'",
        b"\\",
        b"#",
        b"%",
        b"[" * 2000,
        b"- " * 2000,
        b"<a>" * 2000,
        b"\xd6\xd0\xce\xc4",
        b"1e999",
        b"\n\n",
    ),
)


def picture(number: int) -> bytes:
    """A small JPEG of 64 x 48 pixels."""
    random = np.random.default_rng(number)
    held = BytesIO()
    Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(held, "JPEG")
    return held.getvalue()


PICTURES = [picture(n) for n in range(4)]


def coco() -> Files:
    """COCO's folders: two files, polygons, run lengths, a crowd."""
    files: Files = {}
    for split, numbers in (("train", (0, 1)), ("val", (2, 3))):
        rows = [
            {
                "id": n * 2 + m,
                "image_id": n + 1,
                "category_id": m + 1,
                "bbox": [4 + m, 5, 20, 12.5],
                "area": 250.0,
                "iscrowd": 0,
                "segmentation": [[4, 5, 24, 5, 24, 17, 4, 17]],
            }
            for n in numbers
            for m in (0, 1)
        ]
        rows[0] |= {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [100, 50, 2922]}}
        whole = {
            "info": {"year": 2026},
            "images": [{"id": n + 1, "file_name": f"p{n}.jpg", "height": 48, "width": 64} for n in numbers],
            "annotations": rows,
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        files[f"annotations/instances_{split}.json"] = json.dumps(whole).encode()
        files |= {f"{split}/p{n}.jpg": PICTURES[n] for n in numbers}
    return files


def roboflow() -> Files:
    """The same as Roboflow exports it."""
    files: Files = {}
    for name, data in coco().items():
        split = "train" if "train" in name else "valid"
        files[f"{split}/{'_annotations.coco.json' if name.endswith('json') else Path(name).name}"] = data
    return files


def _labels(n: int) -> bytes:
    return f"0 0.5 0.5 0.25 0.5\n1 0.2 0.2 0.6 0.2 0.{n + 3} 0.7\n".encode()


def yolo() -> Files:
    """data.yaml, images/ and labels/."""
    files: Files = {
        "data.yaml": b"path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
    }
    for n in range(4):
        split = "train" if n < 2 else "val"
        files[f"images/{split}/p{n}.jpg"] = PICTURES[n]
        files[f"labels/{split}/p{n}.txt"] = _labels(n)
    return files


def labelimg() -> Files:
    """Text beside pictures."""
    files: Files = {"classes.txt": b"cat\ndog\n"}
    for n in range(4):
        files |= {f"p{n}.jpg": PICTURES[n], f"p{n}.txt": _labels(n)}
    return files


def darknet() -> Files:
    """obj.data and lists."""
    files: Files = {
        "obj.data": b"classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n",
        "obj.names": b"cat\ndog\n",
        "train.txt": b"data/obj_train_data/p0.jpg\ndata/obj_train_data/p1.jpg\n",
        "valid.txt": b"data/obj_train_data/p2.jpg\ndata/obj_train_data/p3.jpg\n",
    }
    for n in range(4):
        files |= {f"obj_train_data/p{n}.jpg": PICTURES[n], f"obj_train_data/p{n}.txt": _labels(n)}
    return files


def voc() -> Files:
    """Annotations, pictures and lists."""
    files: Files = {"ImageSets/Main/train.txt": b"p0\np1\n", "ImageSets/Main/val.txt": b"p2\np3\n"}
    for n in range(4):
        boxes = "".join(
            f"<object><name>{name}</name><difficult>{n % 2}</difficult><bndbox><xmin>{x}</xmin><ymin>5</ymin>"
            f"<xmax>{x + 20}</xmax><ymax>30</ymax></bndbox></object>"
            for name, x in (("cat", 3), ("dog", 30))
        )
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        page = f"<annotation><filename>p{n}.jpg</filename>{size}{boxes}</annotation>"
        text = f"<?xml version='1.0' encoding='utf-8'?>{page}"
        files |= {f"Annotations/p{n}.xml": text.encode(), f"JPEGImages/p{n}.jpg": PICTURES[n]}
    return files


READERS: dict[str, Callable[[], Files]] = {
    "coco": coco,
    "roboflow": roboflow,
    "yolo": yolo,
    "labelimg": labelimg,
    "darknet": darknet,
    "voc": voc,
}


# -- damage ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """One change of one file. Places are shares of what there is, so that any number fits."""

    kind: str
    file: float
    place: float
    extent: float
    value: int

    def __call__(self, folder: Path, names: list[str]) -> None:
        path = folder / names[int(self.file * len(names))]
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 20:
            return
        if self.kind == "special":
            _special(path, self.value)
        elif self.kind == "value" and path.suffix == ".json":
            path.write_bytes(self._value(path.read_bytes()))
        elif self.kind == "text" and path.suffix != ".jpg":
            path.write_bytes(self._text(path.read_bytes()))
        else:
            path.write_bytes(self._bytes(path.read_bytes()))

    def _bytes(self, data: bytes) -> bytes:
        start = int(self.place * len(data))
        end = start + int(self.extent**3 * (len(data) - start))
        what = HOSTILE_BYTES[self.value % len(HOSTILE_BYTES)]
        return (
            data[:start] + what + data[end:],
            data[:start] + bytes(b ^ 1 << self.value % 8 for b in data[start:end]) + data[end:],
            data[:start],
            data[:end] + data[start:end] * 3 + data[end:],
        )[self.value % 4]

    def _text(self, data: bytes) -> bytes:
        """One word becomes another."""
        words = data.decode("utf-8", "replace").replace("<", " <").replace(">", "> ").split(" ")
        words[int(self.place * len(words))] = HOSTILE_TEXT[self.value % len(HOSTILE_TEXT)]
        return " ".join(words).encode("utf-8", "surrogatepass")

    def _value(self, data: bytes) -> bytes:
        """One value of a JSON file becomes another, goes, or comes twice."""
        try:
            whole = json.loads(data)
        except (ValueError, RecursionError):
            return data
        places = list(_places(whole))
        if not places:
            return data
        inside, key = places[int(self.place * len(places))]
        if self.value % 11 == 0:
            del inside[key]
        elif self.value % 11 == 1 and isinstance(inside, list):
            inside.append(inside[key])
        else:
            inside[key] = HOSTILE_VALUES[self.value % len(HOSTILE_VALUES)]
        text = json.dumps(whole)
        if self.value % 13 == 0:
            text = text.replace('"id":', '"id": 1, "id":', 1 + self.value % 3)
        return text.encode()


def _places(node: Any) -> Any:
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def _special(path: Path, value: int) -> None:
    """Something else than a file by that name."""
    path.unlink()
    kinds: tuple[Callable[[], object], ...] = (
        lambda: None,
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path.parent),
        lambda: path.write_bytes(b""),
        lambda: _socket(path),
        lambda: path.with_name(f"\udcff{path.name}").write_bytes(b"x"),
        lambda: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 36),
    )
    kinds[value % len(kinds)]()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.bind(str(path))
        except OSError:  # its path is too long for a socket
            path.mkdir()


share = st.floats(0, 1, exclude_max=True, allow_nan=False)


def damages() -> st.SearchStrategy[list[Damage]]:
    """One to three changes."""
    one = st.builds(
        Damage,
        kind=st.sampled_from(["bytes", "text", "text", "value", "value", "special"]),
        file=share,
        place=share,
        extent=share,
        value=st.integers(0, 10_000),
    )
    return st.lists(one, min_size=1, max_size=3)


def laid_out(files: Files, folder: Path) -> list[str]:
    """Writes a data set; the names of its files, annotations twice, since they are what matters."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return [*files, *(name for name in files for _ in range(3) if not name.endswith(".jpg"))]
