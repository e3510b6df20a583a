"""What a run takes on each device, told before anything is loaded.

    python scripts/plan.py --model llama3.1-70b --weights q4_0 --mesh tensor=4 --device gfx906

compiles the decode step of Llama 3.1 70B and a piece of a prompt for four devices, from shapes
alone, under three cache formats: about twenty seconds and 0.6 GB of memory on two cores. `--help`
lists what else it takes.
"""

import sys

from deltakv_jax.cli.plan import main

if __name__ == "__main__":
    sys.exit(main())
