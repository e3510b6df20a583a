"""Machine code of every GPU kernel, for a GPU that need not be at hand.

    python scripts/compile_gpu.py --target gfx906

lowers each kernel for an MI50, compiles it with the `triton` package (the extra `gpu-aot`) and
shows registers, spills, local memory, occupancy and size of each. `--help` lists what else it
takes.
"""

import sys

from deltakv_jax.cli.compile_gpu import main

if __name__ == "__main__":
    sys.exit(main())
