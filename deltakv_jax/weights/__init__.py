"""Models from folders as Hugging Face lays them out: config, weights, tokenizer."""

from deltakv_jax.weights.folder import LoadedModel as LoadedModel
from deltakv_jax.weights.folder import demo_folder as demo_folder
from deltakv_jax.weights.folder import load_model as load_model
from deltakv_jax.weights.folder import save_model as save_model
from deltakv_jax.weights.tokenizer import Tokenizer as Tokenizer
