"""The decoding command: its text, its figures, its files and its one-line errors."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from deltakv_jax.cli import decode
from deltakv_jax.cli.decode import main
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.generation import session
from deltakv_jax.weights import save_model
from tests.models import random_model

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "continuation.json").read_text())
CONFIG = LlamaConfig(
    vocab_size=260,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=48,
    context=16,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=False,
)
# Of one format, and with one room of 16 tokens: what one run compiles is there for the others.
F32 = ("--kv", "f32")
SHORT = ("--prompt", "abc", "--max-new-tokens", "12", *F32)
BEYOND = ("--beyond-context",)  # always with 26 tokens in all


def make_folder(folder: Path, config: LlamaConfig, seed: int = 0) -> str:
    """A random model whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<bos>", "<eos>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "bytes.json"))
    save_model(folder, random_model(config, seed), folder / "bytes.json", bos="<bos>", eos="<eos>")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_folder(tmp_path_factory.mktemp("models") / "bytes", CONFIG)


@pytest.fixture
def run(folder, capsys, tmp_path):
    """Runs the command on the small model and returns its JSON with stdout and stderr."""

    def run(*words: str) -> dict:
        target = tmp_path / "run.json"
        assert main(["--model", folder, "--json", str(target), *words], prog="decode") == 0
        out, err = capsys.readouterr()
        return json.loads(target.read_text()) | {"out": out, "err": err}

    return run


@pytest.fixture
def refuse(folder, capsys):
    """Runs the command on the small model and returns the one line of its error."""

    def refuse(*words: str) -> str:
        try:
            status = main(["--model", folder, *words], prog="decode")
        except SystemExit as exit:
            status = exit.code
        out, err = capsys.readouterr()
        assert status == 2
        assert out == ""
        assert err.startswith("decode: ")
        assert err.count("\n") == 1
        return err.strip()

    return refuse


@pytest.fixture
def saved(run, tmp_path) -> str:
    run(*SHORT, "--save-cache", str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def texts(result: dict) -> list[str]:
    return [sequence["text"] for sequence in result["sequences"]]


def test_the_golden_continuation(shared, capsys):
    """The text that a Llama written in NumPy goes on with, token for token."""
    model = ["--model", str(shared / "models" / "tiny1m"), "--prompt", GOLDEN["prompt"]]
    assert main([*model, "--kv", "f32", "--max-new-tokens", "100", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    [sequence] = json.loads(out)["sequences"]
    assert sequence["tokens"] == GOLDEN["ids"]
    assert sequence["text"] in err
    assert sequence["text"].startswith(", there was a little girl named Lily. She loved to play")


def test_the_demo_model_goes_on_without_any_argument(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert len(out) > 100
    assert err.startswith("prompt 1: ")
    assert "cache    f16, " in err


def test_text_goes_to_stdout_and_figures_to_stderr(run):
    result = run(*SHORT)
    assert result["out"] == texts(result)[0] + "\n"
    assert "prompt 1: 'abc'" in result["err"]
    assert "prefill  4 tokens in" in result["err"]
    assert "decode   11 tokens in" in result["err"]
    assert "f32, 16 tokens: 32 bits per value, 16384 bytes (f16: 8192)" in result["err"]


def test_the_figures(run):
    result = run("--prompt", "abc", "--max-new-tokens", "12", "--kv", "delta:interval=8")
    assert result["kv"] == "delta:interval=8"
    assert result["prefill"]["tokens"] == 4
    assert result["decode"]["tokens"] == 11
    assert result["decode"]["tokens_per_second"] > 0
    assert result["capacity"] == 16
    assert result["bits_per_value"] == 6.5
    assert result["kv_bytes_f16"] == 2 * 2 * 2 * 16 * 32 * 2
    assert result["kv_bytes"] * 16 == result["kv_bytes_f16"] * 6.5
    assert result["sequences"][0]["stop"] == "limit"
    assert set(result) >= {"model", "device", "jax", "python", "version"}


def test_a_batch_comes_out_in_order_and_as_each_alone(run):
    both = run(*SHORT, "--prompt", "xyz")
    first, second = (run(*SHORT[2:], "--prompt", prompt) for prompt in ("abc", "xyz"))
    assert texts(both) == texts(first) + texts(second)
    assert both["out"] == "".join(f"{text}\n" for text in texts(both))


def test_a_prompt_from_a_file_and_from_stdin(run, tmp_path, monkeypatch):
    (tmp_path / "prompt").write_text("abc\n")
    want = texts(run(*SHORT))
    assert texts(run("--prompt-file", str(tmp_path / "prompt"), *SHORT[2:])) == want
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert texts(run("--prompt-file", "-", *SHORT[2:])) == want


@pytest.mark.parametrize(
    ("words", "kv"),
    [
        ("", None),
        ("--delta-kv", "delta"),
        ("--delta-kv --delta-kv-interval 16", "delta:interval=16"),
        ("--delta-kv --delta-kv-interval 32", "delta"),
        ("--kv q8_0/q4_0:rotate", "q8_0/q4_0:rotate"),
    ],
)
def test_the_format_is_the_one_asked_for(words, kv):
    options = decode.make_parser("decode").parse_args(["--prompt", "a", *words.split()])
    spec = decode.request(options).spec
    assert kv == (spec and str(spec))


def test_a_seed_gives_its_text_again_and_another_one_another(run):
    draw = (*SHORT, "--temperature", "1.5", "--top-k", "200")
    first, again, other = (texts(run(*draw, "--seed", seed)) for seed in ("1", "1", "2"))
    assert first == again != other


@pytest.mark.parametrize(("more", "new"), [("defghijkl", "13"), ("", "22")])
def test_going_on_from_a_saved_cache_is_as_if_never_stopped(run, saved, more, new):
    """In a cache that grows, with a second prompt and without one."""
    prompt = ("--prompt", more) if more else ()
    gone_on = run("--load-cache", saved, *prompt, "--max-new-tokens", new, *BEYOND)
    whole = run("--prompt", f"abc{more}", "--max-new-tokens", new, *F32, *BEYOND)
    assert gone_on["sequences"][0]["tokens"] == whole["sequences"][0]["tokens"]
    assert texts(gone_on) == texts(whole)
    assert gone_on["prefill"]["tokens"] == len(more)
    assert gone_on["kv"] == "f32"


def test_the_text_goes_on_past_a_save(run, tmp_path):
    assert texts(run(*SHORT, "--save-cache", str(tmp_path / "saved"))) == texts(run(*SHORT))


def test_a_cache_full_at_the_context_says_so(run):
    result = run("--prompt", "a" * 13, "--max-new-tokens", "20", *F32)
    assert result["sequences"][0]["stop"] == "cache_full"
    assert len(result["sequences"][0]["tokens"]) == 3
    assert "decode: prompt 1: the cache is full at 16 tokens, the model's context" in result["err"]


def test_beyond_the_context_with_a_warning(run):
    result = run("--prompt", "a" * 20, "--max-new-tokens", "5", *F32, *BEYOND)
    assert "decode: warning: up to 26 tokens, beyond the model's context of 16" in result["err"]
    assert result["sequences"][0]["stop"] == "limit"


TEMPLATE = (
    "{{ bos_token }}{% for one in messages %}{{ one.role }}:{{ one.content | trim }}"
    "{{ eos_token }}{% endfor %}model:"
)


@pytest.fixture
def fed(folder, tmp_path, monkeypatch):
    """Runs the command on that model with a chat template; the tokens that it would be fed.

    In a text of them `^` is the special token that begins it and `$` the one that ends it.
    """
    shutil.copytree(folder, tmp_path / "chat")
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TEMPLATE}
    (tmp_path / "chat" / "tokenizer_config.json").write_text(json.dumps(config))

    def fed(*words: str) -> list[str]:
        prompts = []

        def stop(loaded, request, tokens, *_):
            decode = loaded.tokenizer.decode
            signs = {loaded.tokenizer.bos_id: "^", **dict.fromkeys(loaded.tokenizer.eos_ids, "$")}
            text = lambda prompt: "".join(signs.get(one) or decode([one]) for one in prompt)
            prompts.extend(map(text, tokens))
            raise UserError("this is as far as it need go")

        monkeypatch.setattr(session, "_prefill", stop)
        assert main(["--model", str(tmp_path / "chat"), *words]) == 2
        return prompts

    return fed


def test_prompts_in_the_chat_template(fed):
    """Every letter is a token, and so is a special one where it counts as such."""
    both = fed("--chat", "--system", "Hi", "--prompt", "ab ", "--prompt", "a<eos>")
    assert both == ["^system:Hi$user:ab$model:", "^system:Hi$user:a<eos>$model:"]


def test_special_tokens_in_a_prompt_count_only_where_asked_for(fed):
    assert fed("--prompt", "a<eos>", "--prompt", "a") == ["^a<eos>", "^a"]
    assert fed("--prompt", "a<eos>", "--prompt", "a", "--special") == ["^a$", "^a"]
    assert fed("--chat", "--prompt", "a<eos>", "--special") == ["^user:a$$model:"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prompt a --chat", "the model has no chat template"),
        ("--prompt a --system b", "--system without --chat would change nothing"),
        ("--prompt a --chat --load-cache b", "--chat with --load-cache: a template begins"),
        ("--prompt a --kv q3_0", "unknown KV format 'q3_0'"),
        ("--prompt a --delta-kv --delta-kv-interval 1", "takes a whole number of 2 or more"),
        ("--prompt a --delta-kv --delta-kv-interval x", "takes a whole number of 2 or more"),
        ("--prompt a --delta-kv-interval 16", "--delta-kv-interval without --delta-kv"),
        ("--prompt a --delta-kv --kv f16", "--kv: not allowed with argument --delta-kv"),
        ("--prompt a --prompt-file b", "--prompt-file: not allowed with argument --prompt"),
        ("--prompt a --promt b", "unknown argument '--promt'; did you mean --prompt?"),
        ("--prompt a --top-k 0", "--top-k: expected a whole number of at least 1, got '0'"),
        ("--prompt a --top-k many", "--top-k: expected a whole number of at least 1, got 'many'"),
        ("--prompt a --top-k 5", "top-k without a temperature above 0"),
        ("--prompt a --seed 5", "--seed without a --temperature above 0"),
        ("--prompt a --temperature -1", "temperature must be 0 (greedy) or more, got -1"),
        ("--prompt a --temperature 1 --top-p 2", "top-p must be above 0 and at most 1, got 2"),
        ("--prompt a --max-new-tokens -1", "expected a whole number of at least 0, got '-1'"),
        ("", "no prompt; give --prompt TEXT"),
        ("--prompt-file nowhere.txt", "--prompt-file nowhere.txt: No such file or directory"),
        ("--prompt a --load-cache nowhere", "no saved cache in nowhere"),
        ("--prompt a --json nowhere/run.json", "cannot write in the folder 'nowhere'"),
        ("--prompt a --weights f8", "invalid choice: 'f8'"),
        (f"--prompt a --save-cache {ROOT}", "exists and is not a saved cache"),
        (f"--prompt {'a' * 16}", "the prompt has 17 tokens, more than the model's context of 16"),
    ],
)
def test_wrong_input_is_one_line(refuse, words, message):
    assert message in refuse(*words.split())


def test_a_prompt_file_that_is_no_text(refuse, tmp_path):
    (tmp_path / "prompt").write_bytes(b"abc\xff")
    assert "is not UTF-8 text: byte 3" in refuse("--prompt-file", str(tmp_path / "prompt"))


def test_a_saved_cache_of_another_format(refuse, saved):
    assert "is f32, not q4_0" in refuse("--load-cache", saved, "--kv", "q4_0")


def test_another_number_of_prompts_than_saved(refuse, saved):
    words = ("--load-cache", saved, "--prompt", "a", "--prompt", "b")
    assert "2 prompts for a saved cache of 1 sequences" in refuse(*words)


def test_a_saved_cache_of_other_weights(saved, tmp_path, capsys):
    other = make_folder(tmp_path / "other", CONFIG, seed=1)
    assert main(["--model", other, "--load-cache", saved]) == 2
    assert "is of another model: weights_checksum is" in capsys.readouterr().err


def test_a_damaged_saved_cache(refuse, saved):
    for path in Path(saved).rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    assert "is damaged: " in refuse("--load-cache", saved)


def test_a_head_dim_that_the_format_cannot_hold(shared, capsys):
    words = ["--model", str(shared / "models" / "stories260K"), "--prompt", "a", "--delta-kv"]
    assert main(words, prog="decode") == 2
    assert capsys.readouterr().err.startswith("decode: delta needs a head_dim that is a multiple")


def test_logits_beyond_the_range_of_float32(tmp_path, capsys):
    folder = make_folder(tmp_path / "bytes", CONFIG)
    weights = f"{folder}/model.safetensors"
    norm = {"model.norm.weight": np.full(CONFIG.width, 3e38, np.float32)}
    save_file(load_file(weights) | norm, weights)
    assert main(["--model", folder, *SHORT], prog="decode") == 2
    message = "decode: the logits of prompt 1 are not finite; try --weights f32"
    assert message in capsys.readouterr().err


ON_ONE_CORE = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a background shell
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*words: str) -> subprocess.Popen:
    """The script in a process with one core and one device."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": ""}
    script = [sys.executable, "-W", "error", "-c", ON_ONE_CORE, ROOT / "scripts" / "decode.py"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*script, *words], env=environment, stdout=pipe, stderr=pipe)


def test_text_streams_until_interrupted(tmp_path):
    """Callbacks of a compiled loop may deadlock where they share the only thread with it."""
    folder = make_folder(tmp_path / "long", dataclasses.replace(CONFIG, context=2**15))
    limit = str(2**15 - 2)
    with start("--model", folder, "--prompt", "a", "--max-new-tokens", limit) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(500)) == 500
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.decode().endswith("decode.py: interrupted\n")


def test_a_closed_pipe_ends_it_in_silence(folder, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["--model", folder, *SHORT]) == 141
    assert capsys.readouterr().err == "prompt 1: 'abc'\n"
