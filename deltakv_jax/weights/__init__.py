"""Models from where they are stored: config, weights, tokenizer."""

from deltakv_jax.weights.folder import demo_folder as demo_folder
from deltakv_jax.weights.folder import save_model as save_model
from deltakv_jax.weights.load import LoadedModel as LoadedModel
from deltakv_jax.weights.load import load_model as load_model
from deltakv_jax.weights.load import open_source as open_source
from deltakv_jax.weights.tokenizers import Tokenizer as Tokenizer
