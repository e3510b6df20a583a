"""Perplexity of a Llama under KV cache formats, at several contexts.

    python scripts/sweep.py --text python-docs python-code --json sweep.json --plot sweep.png

runs the demo model at contexts 512, 1024 and 2048 and prints a table for each text: a row for each
format, a column for each context. `--beyond-context` goes on to 16384; `--tokens 16384` has all
contexts see the same text. `--help` lists what else it takes.
"""

import sys

from deltakv_jax.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
