"""Which feature space orders pictures as FID and people do? Alterations and samples, measured.

    python tools/ruler.py --images FACES --size 64 --features inception,pyramid-v2 --output ruler
    python tools/ruler.py ... --autoencoder REF --samples NAME=FOLDER --judgements pairs.json

Real pictures are altered in known ways (the right half of another, a lower right quarter of
another, a slight blur, less contrast), as they are and as reconstructions of an autoencoder;
`--store` adds denoised latents of a Gaussian model, `--samples` samples of runs: a folder or
archive of images, or a file of latents of the autoencoder. Each set's distance to other real
pictures is compared with that of unaltered ones.
Rule for a default: the excess of halves above 1.2 times, of quarters above 2.5 times that of a blur
of 0.6 pixels (at 64 pixels a side; FID has 1.9 and 4.9), and FID's order of the samples.

Features and figures are written as soon as they are known; run the same command again to go on
after a stop, or with more sets or spaces. Written: table.md, results.json, figures/, features/.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from command_line import exit_code, list_of
from ruler_candidates import CANDIDATES
from ruler_measure import Bench, Piece
from ruler_report import Figures, Judgements, check, order_table, summary, text_table
from ruler_sets import ImageSets

from latentddm.engine.atomic_io import write_json, write_text
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress
from latentddm.evaluation.extractors import EXTRACTORS, INCEPTION


def run(options: argparse.Namespace) -> None:
    """Measure what is missing, then write the tables."""
    torch.set_num_threads(options.threads)
    EXTRACTORS.update(CANDIDATES)
    sets = ImageSets(
        images=options.images,
        size=options.size,
        count=options.count,
        seed=options.seed,
        autoencoder=options.autoencoder,
        samples=_named(options.samples),
        store=options.store,
    )
    judgements = None
    if options.judgements is not None:
        judgements = Judgements.read(options.judgements, sets.names)
    bench = Bench(options.output)
    spaces: dict[str, dict[str, Any]] = {space: {} for space in options.features}
    with Progress(len(spaces) * len(sets.names), "ruler", unit="pieces") as progress:
        for name in sets.names:
            for space, figures in spaces.items():
                figures[name] = bench.figures(Piece(sets, space, name))
                progress.update(1)
    for figures in spaces.values():
        check(figures)
    _write(options, sets, spaces, judgements)


def _write(
    options: argparse.Namespace,
    sets: ImageSets,
    spaces: Mapping[str, Figures],
    judgements: Judgements | None,
) -> None:
    anchor = INCEPTION if INCEPTION in spaces else None
    found = summary(spaces, list(sets.samples), anchor, judgements)
    about = {
        "images": sets.images,
        "size": sets.size,
        "count": sets.count,
        "seed": sets.seed,
        "autoencoder": sets.autoencoder,
        "samples": dict(sets.samples),
        "store": sets.store,
    }
    write_json(options.output / "results.json", {"protocol": about, "spaces": found})
    text = text_table(found, sets.names) + "\n\n" + order_table(spaces, sets.names) + "\n"
    write_text(options.output / "table.md", text)
    print(text)


def _named(entries: Sequence[str]) -> dict[str, str]:
    """NAME=SOURCE entries; UserError for another form or a name given twice."""
    named: dict[str, str] = {}
    for entry in entries:
        name, equals, source = entry.partition("=")
        if not (name and equals and source) or name in named or "/" in name:
            raise UserError(f"--samples {entry}: give NAME=FOLDER, each name once and without /.")
        named[name] = source
    return named


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, metavar="SRC", help="source of real pictures")
    add("--output", type=Path, required=True, metavar="DIR")
    add("--size", type=int, default=64, help="edge of the pictures in pixels (default 64)")
    add("--count", type=int, default=700, help="pictures of each set (default 700)")
    add("--seed", type=int, default=0, help="of the choice of the pictures")
    add("--autoencoder", metavar="REF", help="adds its reconstructions, altered too")
    add("--samples", action="append", default=[], metavar="NAME=SRC", help="a set; repeat")
    add("--store", metavar="STORE", help="its latents: adds draws and means of a Gaussian model")
    add("--judgements", type=Path, metavar="FILE", help='JSON: [{"better": SET, "worse": SET}]')
    known = ", ".join(CANDIDATES)
    add(
        "--features",
        type=list_of(str),
        default=(INCEPTION, "pyramid-v2"),
        help=f"spaces, those of `evaluate` and {known} (default inception,pyramid-v2)",
    )
    add("--threads", type=int, default=1, help="of the processor (default 1)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    parsed = _parser().parse_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
