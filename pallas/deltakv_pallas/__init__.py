"""The source root of the GPU kernels, which read the cache's packed leaves as they lie.

Nothing stands here yet: attention runs through XLA on every device.
"""
