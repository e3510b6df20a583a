"""From a prompt to text: steps of the model over a cache, sampling, and the decode loop."""
