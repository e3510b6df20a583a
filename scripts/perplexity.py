"""Perplexity of a Llama under KV cache formats, by `llama-perplexity`'s protocol.

    python scripts/perplexity.py

runs the demo model (context 512, chunks that do not overlap, their second halves scored) on Python
documentation that it was not trained on, under the default formats: about half a minute on two
cores, most of it compilation. `--help` lists what else it takes.
"""

import sys

from deltakv_jax.cli.perplexity import main

if __name__ == "__main__":
    sys.exit(main())
