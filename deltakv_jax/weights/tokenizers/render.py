"""Renders one chat template, as a program of its own: `python render.py < REQUEST > ANSWER`.

A template comes with the model and is a program. The sandbox keeps it from the machine but not from
an endless loop or from memory without end; the limits of a process do. Both streams are JSON: the
request has `template` and `variables`, `seconds` of the processor, `bytes` of memory and `longest`,
characters of the text; the answer has `text` or `error`.
"""

import datetime
import json
import resource
import signal
import sys
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which transformers marks what a model says: here no more than that."""

    tags = {"generation"}  # noqa: RUF012, jinja2 has it so

    def parse(self, parser: Any) -> Any:
        """The statements up to `{% endgeneration %}`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, variables: dict[str, Any], longest: int) -> str:
    """The text of a template in the environment that transformers gives it.

    Raises:
      ValueError: where the text has more than `longest` characters.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    text = ""
    for piece in environment.from_string(template).generate(**variables):
        text += piece
        if len(text) > longest:
            raise ValueError(f"its text is longer than {longest} characters")
    return text


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes that jinja2's own filter puts in for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def limit(seconds: int, memory: int) -> None:
    """Bounds this process: TimeoutError after `seconds`, MemoryError beyond `memory` bytes."""

    def stop(*_: object) -> NoReturn:
        raise TimeoutError(f"it takes more than {seconds} seconds")

    signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # the second one kills
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def main() -> None:
    """Answers the one request."""
    request = json.load(sys.stdin)
    limit(request.pop("seconds"), request.pop("bytes"))
    try:
        answer = {"text": render(**request)}
    except MemoryError:
        answer = {"error": "it takes too much memory"}
    except Exception as error:  # whatever the template does
        answer = {"error": str(error) or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
