"""Learns what caches may know of a model, and writes it to a small file.

    python scripts/calibrate.py --bits 3.5 --out demo.cal

runs the demo model over 32 chunks of Python documentation, in half a minute on two cores, and
allots 2, 3 or 4 bits to K and V of each layer, so that a packed value takes 3.5 at most. Then

    python scripts/perplexity.py --kv f16 layered:centre calibrated --kv-calibration demo.cal

takes the means of channels off before it packs, or packs each layer with its bits.
"""

import sys

from deltakv_jax.cli.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
