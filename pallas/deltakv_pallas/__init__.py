"""GPU kernels, which read the cache's packed leaves as they lie."""
