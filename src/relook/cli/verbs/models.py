"""`relook models`: what there is, how large, how accurate, and whose numbers these are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relook.cli.arguments import Verb, option
from relook.cli.printing import say, say_json, table

if TYPE_CHECKING:
    from relook.zoo.cost import Cost
    from relook.zoo.entry import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    pattern: str = option(
        "only names that fit, as of file names: 'reppoints_v1*'", default="*", positional=True
    )
    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Lists the catalog; gives the exit status."""
    from relook.zoo.catalog import ENTRIES, find, names  # noqa: PLC0415 (torch, which --help does without)
    from relook.zoo.cost import cost  # noqa: PLC0415

    chosen = names(options.pattern) if set(options.pattern) & set("*?[") else [find(options.pattern).name]
    if not chosen:
        raise ValueError(f"no model fits {options.pattern!r}; `relook models` shows all")
    rows = [_row(ENTRIES[name], cost(ENTRIES[name])) for name in chosen]
    if options.json:
        say_json(rows)
        return 0
    head = ("model", "parameters (M)", "GFLOPs", "input", "AP val", "AP test-dev", "file", "published by")
    say(table(head, [_cells(row) for row in rows]))
    say()
    say("GFLOPs: a multiply-add counts once, as in papers; interpolation is not counted. AP: COCO, as the")
    say("publisher reports it; relook ships no weights. The nano models are relook's own, for CPUs. A file")
    say("named `fetch` comes by itself (predict --model NAME, train --start published), `page` says that a")
    say("person has to fetch it; --json has the addresses.")
    return 0


def _row(entry: "Entry", cost: "Cost") -> dict[str, Any]:
    return {
        "name": entry.name,
        "parameters": cost.parameters,
        "gflops": round(cost.multiply_adds / 1e9, 3),
        "input": [cost.height, cost.width],
        "published_ap": entry.figure("AP", "coco/val2017"),
        "published_ap_test_dev": entry.figure("AP", "coco/test-dev"),
        "publisher": entry.publisher,
        "paper": entry.paper,
        "weights": entry.weights,
        "page": entry.page,
        "licence": entry.licence,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    height, width = row["input"]
    return (
        row["name"],
        f"{row['parameters'] / 1e6:.1f}",
        f"{row['gflops']:.1f}",
        f"{height}x{width}",
        *(
            "-" if row[key] is None else f"{row[key]:.1f}"
            for key in ("published_ap", "published_ap_test_dev")
        ),
        "fetch" if row["weights"] else "page" if row["page"] else "-",
        row["publisher"],
    )


VERB = Verb(
    name="models",
    does="Lists the models of the catalog. Names are what --model takes.",
    example="  relook models\n  relook models 'reppoints_v2*' --json",
    options=Options,
    run=run,
)
