"""Pascal VOC's format: Annotations/*.xml, JPEGImages/, ImageSets/Main/*.txt, classes.txt."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from relook.data.sample import Sample
from relook.data.writing.kinds import Split, Writer, counted, has_run_lengths, polygons


def _write(out: Path, splits: Sequence[Split]) -> list[str]:
    """A file for each picture; crowds are marked difficult.

    VOC counts pixels from 1 and both corners belong to the object. Outlines become <polygon>, x1, y1, x2 ...
    """
    (out / "Annotations").mkdir()
    clipped = runs = ignored = outside = 0
    for split in splits:
        for sample, name in split.rows():
            file = out / "Annotations" / f"{Path(name).stem}.xml"
            page = _page(sample, name, split.source.classes)
            ET.indent(page)
            file.write_bytes(ET.tostring(page, encoding="utf-8", xml_declaration=True))
            beyond = (sample.boxes[:, 2:] <= 0).any(1)
            outside += int(beyond.sum())
            clipped += int(((sample.boxes[:, :2] < -1e-3).any(1) & ~beyond).sum())
            ignored += int((sample.ignore & ~sample.crowd).sum())
            runs += sum(has_run_lengths(sample, row) for row in range(len(sample.labels)))
        if split.name != "all":
            lists = out / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            lines = [f"{Path(name).stem}\n" for name in split.names]
            (lists / f"{split.name}.txt").write_text("".join(lines), encoding="utf-8")
    names = "".join(f"{_plain(name)}\n" for name in splits[0].source.classes)
    (out / "classes.txt").write_text(names, encoding="utf-8")
    return [
        *counted(
            clipped, "begin left of or above their picture; VOC counts from 1, so they are clipped there"
        ),
        *counted(outside, "lie left of or above their picture, where VOC has no numbers; they are left out"),
        *counted(ignored, "are to be ignored, which VOC has no mark for; they are marked difficult"),
        *counted(runs, "have a mask of run lengths, which VOC's files do not hold; their boxes are written"),
    ]


def _page(sample: Sample, name: str, classes: Sequence[str]) -> ET.Element:
    page = ET.Element("annotation")
    ET.SubElement(page, "filename").text = name
    size = ET.SubElement(page, "size")
    for key, value in (("width", sample.width), ("height", sample.height), ("depth", 3)):
        ET.SubElement(size, key).text = str(value)
    for row, label in enumerate(sample.labels.tolist()):
        if (sample.boxes[row, 2:] <= 0).any():
            continue
        node = ET.SubElement(page, "object")
        ET.SubElement(node, "name").text = _plain(str(classes[label]))
        ET.SubElement(node, "difficult").text = str(int(sample.crowd[row] or sample.ignore[row]))
        box = ET.SubElement(node, "bndbox")
        x1, y1, x2, y2 = sample.boxes[row].tolist()
        corners = (max(x1, 0.0) + 1, max(y1, 0.0) + 1, x2, y2)
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ET.SubElement(box, key).text = f"{round(value, 9):.15g}"
        for outline in polygons(sample, row) or ():
            drawn = ET.SubElement(node, "polygon")
            for n, value in enumerate(outline):
                ET.SubElement(drawn, f"{'xy'[n % 2]}{n // 2 + 1}").text = f"{round(value, 9):.15g}"
    return page


def _plain(name: str) -> str:
    """A class name as VOC's readers take it: blanks around it or several in it are none."""
    whole = " ".join(name.replace("\ufeff", "").split())
    return "".join("_" if sign in "\ufffe\uffff" or ord(sign) < 32 else sign for sign in whole)


VOC = Writer(images=lambda _: "JPEGImages", write=_write)
