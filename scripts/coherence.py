"""How much neighbouring tokens have in common in K and V of a Llama, layer by layer.

    python scripts/coherence.py

runs the demo model on Python documentation that it was not trained on, exactly, and measures K
before RoPE, K after RoPE and V: differences against values, correlation, the share of the channel
means, and what q4_0, delta and q4_0 about the mean lose. `--help` lists what else it takes.
"""

import sys

from deltakv_jax.cli.coherence import main

if __name__ == "__main__":
    sys.exit(main())
