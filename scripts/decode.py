"""Text that goes on from a prompt, with the KV cache in the format of your choice.

    python scripts/decode.py

lets the demo model go on from a line of its own; `--help` lists the options.
"""

import sys

from deltakv_jax.cli.decode import main

if __name__ == "__main__":
    sys.exit(main())
