import pytest

from deltakv_jax.training import corpus


@pytest.fixture(scope="module", params=[corpus.python_docs, corpus.python_code])
def texts(request) -> corpus.Corpus:
    return request.param()


def test_there_is_enough_of_both(texts: corpus.Corpus):
    assert sum(map(len, texts.train)) > 4 * len(texts.held_out)
    assert len(texts.held_out) > 40_000


def test_no_module_is_in_both():
    code = corpus.python_code()
    assert not any(text in code.held_out for text in code.train)


def test_no_paragraph_of_the_docs_is_in_both():
    docs = corpus.python_docs()
    held_out = set(docs.held_out.split("\n\n"))
    assert not any(held_out & set(text.split("\n\n")) for text in docs.train)


def test_the_name_alone_decides():
    """A newer Python must hold out the same documents, whatever is in them."""
    docs = ["slicings", "strings", "subscriptions", "typesmapping", "typesseq"]
    assert all(corpus.is_held_out(name, corpus.HELD_OUT_DOCS) for name in docs)
    train = ["specialnames", "types", "compound", "string-methods", "typesseq-mutable"]
    assert not any(corpus.is_held_out(name, corpus.HELD_OUT_DOCS) for name in train)
    code = ["contextlib", "html.parser", "re._parser", "tempfile", "xml.dom.minidom"]
    assert all(corpus.is_held_out(name, corpus.HELD_OUT_CODE) for name in code)
    train = ["argparse", "asyncio.events", "dataclasses", "pathlib", "typing"]
    assert not any(corpus.is_held_out(name, corpus.HELD_OUT_CODE) for name in train)


def test_what_is_generated_or_no_library_is_left_out():
    names = ["test.test_ast", "idlelib.run", "site-packages.numpy.core", "pydoc_data.topics"]
    names += ["_sysconfigdata__linux_x86_64-linux-gnu", "config-3.11-x86_64.python-config"]
    assert all(map(corpus._is_left_out, names))
    assert not any(map(corpus._is_left_out, ["unittest.mock", "configparser", "json.__init__"]))


def test_a_split_is_in_order_of_names():
    documents = {name: f"text of {name}" for name in "zyxwvutsrqponmlkjihgfedcba"}
    texts = corpus.split(documents, share=0.3)
    assert list(texts.train) == sorted(texts.train)
    held_out = texts.held_out.rstrip("\n").split("\n\n")
    assert held_out == sorted(held_out)
    assert len(texts.train) + len(held_out) == 26
    assert min(len(texts.train), len(held_out)) > 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_reaches_from_nothing_to_all(share: float):
    assert corpus.is_held_out("anything", share) == bool(share)
