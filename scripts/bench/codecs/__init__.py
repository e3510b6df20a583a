"""Simulated caches: candidates, what reads them, and what they cost a model."""
