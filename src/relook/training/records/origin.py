"""What a run was trained on and how: kept in its last.ckpt, compared when it goes on."""

import hashlib
import json
import marshal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from relook.data.columnar import ColumnarSamples, pack
from relook.data.sample import Source
from relook.recipe import Recipe

KEY: Final = "relook"  # of what a last.ckpt holds


def origin(
    train: Source,
    val: Source | None,
    recipe: Recipe,
    resolved: Mapping[str, Any],
    describe: Mapping[str, str],
) -> dict[str, Any]:
    """Plain values that say what a run is.

    Args:
        train: what is learnt.
        val: what is validated on.
        recipe: of the run.
        resolved: what the settings came to: "epochs", "total_batch", "lr" ...
        describe: metadata of the weights files.
    """
    model = _parsed(describe.get("relook", "{}"))
    changed = {
        f"--set {name}": value
        for name, value in model.get("settings", {}).items()
        if not name.startswith("recipe.") and name != "detector.num_classes"  # told by recipe and classes
    }
    return {
        "description": describe.get("relook", ""),  # so that its weights can be used as any other file's
        "classes": list(train.classes),
        "images": {"training": _images(train), "validation": None if val is None else _images(val)},
        "settings": {
            "model": str(model.get("model", "")),
            **changed,
            **plain(resolved),
            **_flat("recipe", plain(asdict(recipe))),
        },
    }


def _images(source: Source) -> dict[str, Any]:
    return {"number": len(source.samples), "digest": digest(source)}


def digest(source: Source) -> str:
    """SHA-256 of the names of all images and their annotations, in their order; not of their pixels."""
    samples = source.samples
    columns = samples if isinstance(samples, ColumnarSamples) else pack(samples)
    places = pairwise(columns.path_ends.tolist())
    names = [columns.paths[start:end].rpartition(b"/")[2] for start, end in places]
    said = hashlib.sha256(b"\n".join(names))
    for column in (columns.ids, columns.sizes, columns.ends, columns.boxes, columns.labels, columns.flags):
        said.update(np.ascontiguousarray(column).tobytes())
    said.update(marshal.dumps(columns.segmentation, 2))  # in this format equal values have equal bytes
    return said.hexdigest()


def record_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a last.ckpt says of its run; nothing where an older relook wrote it."""
    record = state.get(KEY)
    kept = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
    whole = isinstance(kept.get("classes"), list) and all(
        isinstance(kept.get(name), dict) for name in ("images", "settings")
    )
    return kept if whole else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what is not as it was; empty when all is."""
    return [
        *_classes(before["classes"], now["classes"]),
        *_pictures(before["images"], now["images"]),
        *_settings(before["settings"], now["settings"]),
    ]


def _classes(before: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    if len(before) != len(now):
        yield f"{len(before)} classes ({_few(before)}), now {len(now)} ({_few(now)})"
        return
    if sorted(before) == sorted(now) and list(before) != list(now):
        yield f"the same classes in another order: {_few(before)}, now {_few(now)}"
        return
    for n, (old, new) in enumerate(zip(before, now, strict=True), 1):
        if old != new:
            yield f"class {n} was {old!r}, now {new!r}"
            return


def _pictures(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for which, new in now.items():
        old = before.get(which)
        if (old is None) != (new is None):
            first, then = ("no", new["number"]) if old is None else (old["number"], "none")
            yield f"{first} {which} images, now {then}"
        elif old is not None and old["number"] != new["number"]:
            yield f"{old['number']} {which} images, now {new['number']}"
        elif old != new:
            yield f"as many {which} images, but other names, another order or other annotations"


def _settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old != new and name in before and name in now:
            yield f"{name} was {_shown(old)}, now {_shown(new)}"
        elif old != new:
            yield f"{name} was {_shown(old)}" if name in before else f"{name} is now {_shown(new)}"


def _flat(above: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{above}.{name}"
        if isinstance(value, Mapping):
            found |= _flat(path, cast("Mapping[str, Any]", value))
        else:
            found[path] = value
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _shown(value: Any) -> str:
    return f"{value!r:.80}" if not isinstance(value, str) else f"{value:.80}"


def plain(value: Any) -> Any:
    """Values that YAML and a checkpoint can hold: no tuples, no paths."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in cast("Sequence[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _parsed(text: str) -> dict[str, Any]:
    read = json.loads(text)
    return cast("dict[str, Any]", read) if isinstance(read, dict) else {}
