"""A verdict on every published claim of Delta-KV, each from an experiment done here.

    python scripts/claims.py

runs the experiments on the demo model and two texts, a few minutes on two cores, and writes
results/claims.json, results/claims-demo.json and, of all such files in that folder, RESULTS.md.
`--model FOLDER --text FILE` adds another model to it. `--help` lists what else it takes.
"""

import sys

from deltakv_jax.cli.claims import main

if __name__ == "__main__":
    sys.exit(main())
