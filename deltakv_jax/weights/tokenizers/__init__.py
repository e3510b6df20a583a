"""Text to token ids and back, by whichever file a model brings its tokens in."""

from deltakv_jax.weights.tokenizers.base import Tokenizer as Tokenizer
