"""A model as a checkpoint of ready weights, which `--model` of the other scripts takes.

    python scripts/convert.py SOURCE DEST --weights q4_0

reads SOURCE, quantises its matrices and writes them to the folder DEST with config and tokenizer,
so that loading DEST only has to read. `--help` lists the types.
"""

import sys

from deltakv_jax.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
