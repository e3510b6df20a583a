"""What a cache format costs: perplexity and KL divergence over the same tokens, cache-true."""
