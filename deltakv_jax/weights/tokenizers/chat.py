"""A model's chat template, and conversations as the tokens that it makes of them."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltakv_jax.errors import UserError
from deltakv_jax.weights.native import one_line
from deltakv_jax.weights.tokenizers.specials import Disguise, split
from deltakv_jax.weights.tokenizers.vocabulary import Part

Message = Mapping[str, str]
"""What one side says: "role" ("system", "user" or "assistant") and "content"."""

_RENDER = Path(__file__).with_name("render.py")
_LONGEST = 1 << 18  # characters of a template; the longest known has 20,000
SECONDS = 10  # of the processor, to render one; it takes milliseconds
_BYTES = 1 << 30
_MORE_TEXT = 1 << 20  # characters of the prompt, beyond four times those of the request


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A jinja2 template that turns a conversation into a prompt.

    Attributes:
      source: the file that it is from, for errors.
      text: the template.
      variables: what it sees besides the messages: `bos_token` and `eos_token`.
    """

    source: str
    text: str
    variables: Mapping[str, str]

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, up to where the model's answer begins.

        Raises:
          UserError: where the template is wrong, refuses the messages, or takes too long.
        """
        if len(self.text) > _LONGEST:
            raise UserError(f"{self.source}: its chat template has {len(self.text)} characters")
        given = {"messages": [dict(one) for one in messages], "add_generation_prompt": True}
        answer = self._answer({**self.variables, **given})
        if "error" in answer:
            raise UserError(f"{self.source}: its chat template fails: {one_line(answer['error'])}")
        return answer["text"]

    def _answer(self, variables: Mapping[str, Any]) -> dict[str, str]:
        """Runs the program that renders; -P keeps it from importing the files beside it."""
        longest = _MORE_TEXT + 4 * len(json.dumps(variables))
        limits = {"seconds": SECONDS, "bytes": _BYTES, "longest": longest}
        request = json.dumps({"template": self.text, "variables": variables, **limits})
        words = [sys.executable, "-P", str(_RENDER)]
        done = subprocess.run(words, input=request, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{self.source}: its chat template ends the program that renders it")
        return json.loads(done.stdout)


def conversation(prompt: str, system: str | None) -> list[Message]:
    """The messages of a conversation that begins with a prompt."""
    begin = [] if system is None else [{"role": "system", "content": system}]
    return [*begin, {"role": "user", "content": prompt}]


def chat_parts(
    template: ChatTemplate,
    messages: Sequence[Message],
    special: Mapping[str, int],
    *,
    parse_contents: bool,
) -> list[Part]:
    """A conversation as parts of a prompt: the template's special tokens are ids.

    Args:
      template: the model's.
      messages: what was said.
      special: ids of the special tokens by their text.
      parse_contents: whether those in the messages are ids too, rather than text.
    """
    if parse_contents:
        return split(template.render(messages), special)
    texts = [template.text, *template.variables.values(), *(one["content"] for one in messages)]
    disguise = Disguise(special, texts)
    disguised = [{**one, "content": disguise.put_on(one["content"])} for one in messages]
    parts = split(template.render(disguised), special)
    return [part if isinstance(part, int) else disguise.take_off(part) for part in parts]
