"""GPU kernels, which read the cache's and the weights' packed leaves as they lie."""
