"""The embeddings example: the same vectors as plain PyTorch, from the embedded server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import Tokenizer

from cantata import InferenceError, Server
from cantata.runtime.errors import StatusCode
from examples.ensembles.embeddings.minilm import MiniLm, embed

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ensembles" / "embeddings"
MODELS = EXAMPLE / "models"
EXPECTED: dict[str, Any] = json.loads((EXAMPLE / "expected.json").read_text())
SENTENCES: list[str] = EXPECTED["sentences"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Embeddings = npt.NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    subprocess.run([sys.executable, str(EXAMPLE / "prepare.py")], check=True)


@pytest.fixture(scope="module")
def server(prepared: None) -> Iterator[Server]:
    with Server(MODELS) as server:
        yield server


def served(server: Server, *texts: str) -> Embeddings:
    column = np.array([[text.encode()] for text in texts], dtype=object)
    return server.infer("embeddings", {"TEXT": column})["EMBEDDING"]


def plain(*texts: str) -> Embeddings:
    """What PyTorch gives without any server, each text by itself and so without any filling."""
    model = MiniLm()
    model.load_state_dict(torch.export.load(MODELS / "minilm" / "1" / "model.pt2").state_dict)
    tokenizer = Tokenizer.from_file(str(MODELS / "tokenize" / "1" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    ids = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
    return np.concatenate([embed(model.eval(), each, torch.ones_like(each)).numpy() for each in ids])


def test_embeddings_equal_those_of_plain_pytorch(server: Server) -> None:
    texts = [*SENTENCES, "", "grüße 你好", "word " * 400]
    np.testing.assert_allclose(served(server, *texts), plain(*texts), rtol=0, atol=1e-5)


def test_embeddings_are_the_expected_ones_and_of_length_one(server: Server) -> None:
    embeddings = served(server, *SENTENCES)
    np.testing.assert_allclose(embeddings[:, :8], EXPECTED["beginnings"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=0, atol=1e-6)


def test_each_sentence_is_nearest_to_the_one_that_means_the_same(server: Server) -> None:
    embeddings = served(server, *SENTENCES)
    similarities = embeddings @ embeddings.T - 2 * np.eye(len(embeddings))
    assert [[one, int(similarities[one].argmax())] for one in range(len(SENTENCES))] == EXPECTED["similar"]


def test_an_embedding_does_not_depend_on_its_neighbours(server: Server) -> None:
    together = served(server, SENTENCES[0], "word " * 200)[0]
    np.testing.assert_allclose(together, served(server, SENTENCES[0])[0], rtol=0, atol=1e-5)


def test_text_that_is_no_utf8_is_refused(server: Server) -> None:
    with pytest.raises(InferenceError, match="TEXT is not UTF-8") as caught:
        server.infer("embeddings", {"TEXT": np.array([[b"\xff"]], dtype=object)})
    assert caught.value.code is StatusCode.INVALID_ARG


def test_more_texts_than_the_batch_size_are_refused(server: Server) -> None:
    with pytest.raises(InferenceError, match="batch-size must be <= 32"):
        served(server, *["text"] * 33)
