"""Models of the Hugging Face hub, by the name `hf:OWNER/NAME[@REVISION]`.

This is the one module that may use the network, and only for a name with that prefix. Files are
kept where the library keeps them (HF_HOME), and what is there is not fetched again.
"""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from deltakv_jax.errors import UserError
from deltakv_jax.weights.native import one_line

PREFIX = "hf:"

# Not `*.safetensors`: some repositories hold their weights a second time in another layout.
FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
)

_NAME = re.compile(rf"{PREFIX}(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\S+))?", re.ASCII)


def fetch(name: str) -> Path:
    """The folder with a model's files, fetched from the hub with a progress bar where need be.

    Args:
      name: "hf:OWNER/NAME", or with a branch, tag or commit "hf:OWNER/NAME@REVISION".

    Raises:
      UserError: where the name is none, the hub has no such model or does not give it, or there is
        no way to the hub and the files are not on this machine.
    """
    repo, revision = parse(name)
    try:
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(FILES))
        )
    except Exception as error:  # of the library, its transport or the disk
        raise UserError(f"{name}: {_fault(error, repo, revision)}") from None


def parse(name: str) -> tuple[str, str | None]:
    """The repository OWNER/NAME and the revision, None where none is named.

    Raises:
      UserError: where `name` is of another form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is no model of the hub; expected {PREFIX}OWNER/NAME[@REVISION]")
    return match["repo"], match["revision"]


def _fault(error: Exception, repo: str, revision: str | None) -> str:
    """What the library found, on one line."""
    match error:
        case errors.LocalEntryNotFoundError():
            place = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
            what = f"all files of {revision or constants.DEFAULT_REVISION}"
            return f"{place} does not hold {what}; {' '.join(str(error).split())}"
        case errors.GatedRepoError():
            return "gated: ask for access on the model's page, then `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "the hub has no such model, or it is private: `hf auth login`"
        case errors.RevisionNotFoundError():
            return f"{repo} has no revision {revision!r}"
    return one_line(error)
