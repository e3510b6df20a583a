"""Makes the tables of README.md and RESULTS.md anew from the JSON in results/.

    python scripts/tables.py [--check] [FILE ...]

A table stands between `<!-- table: results/NAME.json -->` and `<!-- end -->`; one of codecs has a
word before the names, such as `codec-tools`. `--check` writes nothing, names what is out of date,
and exits with status 1 if anything is.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from deltakv_jax.cli import arguments
from deltakv_jax.evaluation import files, markdown
from scripts.bench.codecs.tables import MAKERS

ROOT = Path(__file__).parents[1]
OUT_OF_DATE = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the arguments ask for; returns the exit status."""
    parser = arguments.OneLineParser("tables.py", description="Tables of figures, from JSON.")
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE", help="(README.md and RESULTS.md)")
    add("--check", action="store_true", help="only say what is out of date")
    options = parser.parse_args(argv)
    found: list[str] = []
    paths = options.files or documents()
    work = lambda: found.extend(check(paths)) if options.check else fill(paths)
    status = arguments.run(work, prog=parser.prog)
    return OUT_OF_DATE if found else status


def documents() -> list[Path]:
    """The files of this project that may hold tables, as far as they are there."""
    return [path for name in ("README.md", "RESULTS.md") if (path := ROOT / name).exists()]


def check(paths: Sequence[Path]) -> list[str]:
    """Says and returns what is out of date."""
    found = [line for path in paths for line in markdown.stale(path, MAKERS)]
    for line in found:
        print(f"{line}; run python scripts/tables.py")
    return found


def fill(paths: Sequence[Path]) -> None:
    """Writes every file whose tables are out of date, and says so; none if a table cannot be."""
    for path, content in [(path, markdown.filled(path, MAKERS)) for path in paths]:
        if content != path.read_text(encoding="utf-8"):
            files.write_atomically(path, content.encode(), "tables of")
            print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
