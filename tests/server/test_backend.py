"""backends/onnxruntime/model.py, run by the real Triton."""

import asyncio

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from server.bundle import read_served_bundle
from server.canary import golden_inputs
from tests.bundles import END, PAD, START, UNKNOWN, VOCABULARY, softmax, tiny_embedding, tiny_model, write_bundle
from tests.server.asking import ask, ask_all
from tests.server.odd_bundles import edit_config, replace_model
from tests.triton_process import running_triton

GOOD, BAD, MOVIE = (VOCABULARY.index(word) for word in ("좋다", "싫다", "영화"))
LIKES = [START, MOVIE, GOOD, END]
HATES = [START, MOVIE, MOVIE, BAD, BAD, END]


@pytest.fixture(scope="module")
def merging_triton(tmp_path_factory):
    """A server that waits 0.3 s for company and lets requests of different lengths share a batch.

    Its model answers infinity for the unknown word.
    """
    repository = tmp_path_factory.mktemp("merging") / "model_repository"
    write_bundle(repository)
    table = tiny_embedding()
    table[UNKNOWN] = np.inf
    replace_model(repository, tiny_model(embedding=table))

    def wait_for_company(config):
        config.dynamic_batching.max_queue_delay_microseconds = 300_000
        for entry in config.input:
            entry.allow_ragged_batch = True

    edit_config(repository, wait_for_company)
    with running_triton(repository, repository.parent / "var") as triton:
        yield triton


def largest_batch(triton) -> int:
    with InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:
        (statistics,) = client.get_inference_statistics("sentiment").model_stats
    return max(batch.batch_size for batch in statistics.batch_stats)


def test_the_golden_rows_are_answered_over_grpc_as_the_manifest_says(shared_triton, shared_repository):
    manifest = read_served_bundle(shared_repository).manifest
    with InferenceServerClient(f"127.0.0.1:{shared_triton.grpc_port}") as client:
        inputs = golden_inputs(manifest.golden, width=manifest.max_length, padding=manifest.pad_token_id)
        logits = client.infer("sentiment", inputs, model_version="1").as_numpy("logits")
    np.testing.assert_allclose(softmax(logits), [row.probabilities for row in manifest.golden], atol=1e-5)


def test_padding_changes_nothing_and_a_batch_answers_what_its_rows_answer_alone(shared_triton):
    width = 32
    ids = [LIKES + [PAD] * (width - len(LIKES)), HATES + [PAD] * (width - len(HATES))]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in (LIKES, HATES)]
    together = ask(shared_triton, ids, mask)
    alone = np.concatenate([ask(shared_triton, [LIKES]), ask(shared_triton, [HATES])])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together[0].argmax() == 1 and together[1].argmax() == 0


def test_answers_leave_no_line_in_the_log(shared_triton):
    ask(shared_triton, [LIKES])
    log = (shared_triton.var_dir / "log" / "triton.log").read_text(encoding="utf-8")
    assert "READY" in log and "Traceback" not in log


def test_what_stands_under_the_padding_is_not_read(shared_triton):
    same = ask(shared_triton, [[*LIKES, BAD, BAD]], [[1] * len(LIKES) + [0, 0]])
    np.testing.assert_allclose(same, ask(shared_triton, [LIKES]), atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "mask", "sentence"),
    [
        ([[START, 32, END]], [[1, 1, 1]], "input_ids holds 32, the vocabulary ends at 31; use the tokenizer.json"),
        ([[START, -1, END]], [[1, 1, 1]], "input_ids holds -1"),
        ([LIKES, LIKES], [[0, 0, 0, 0], [1, 1, 1, 1]], "attention_mask has a row without a 1"),
        ([LIKES], [[1, 1, 2, 1]], "attention_mask holds a value that is neither 0 nor 1"),
        ([LIKES], [[1, 1, 1]], "attention_mask has shape [1, 3] and input_ids [1, 4]; they must be equal"),
        ([[START] * 33], [[1] * 33], "input_ids has 33 tokens, the model reads 32; truncate the text"),
        (np.zeros((1, 0)), np.zeros((1, 0)), "input_ids has shape [1, 0]"),
        (LIKES, [1, 1, 1, 1], "unexpected shape"),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(shared_triton, ids, mask, sentence):
    with pytest.raises(InferenceServerException) as caught:
        ask(shared_triton, ids, mask)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert sentence in caught.value.message()


def test_malformed_requests_do_not_harm_the_good_ones_in_their_batch(merging_triton):
    ones = [[1] * len(LIKES)]
    good, beyond, masked, infinite = (
        ([LIKES], ones),
        ([[START, 999, GOOD, END]], ones),
        ([LIKES], [[0] * len(LIKES)]),
        ([[START, UNKNOWN, GOOD, END]], ones),
    )
    alone = ask(merging_triton, [LIKES])
    answers = asyncio.run(ask_all(merging_triton, [good, beyond, good, masked, infinite, good]))
    assert largest_batch(merging_triton) >= 6, "they did not meet in one batch, so this test showed nothing"
    for index in (0, 2, 5):
        np.testing.assert_allclose(answers[index], alone, atol=1e-5)
    assert [answers[index].status() for index in (1, 3, 4)] == [
        "StatusCode.INVALID_ARGUMENT",
        "StatusCode.INVALID_ARGUMENT",
        "StatusCode.INTERNAL",
    ]
    assert "not finite" in answers[4].message()


def test_requests_of_different_lengths_and_sizes_share_a_batch_and_get_their_own_rows(merging_triton):
    rows = [[START, GOOD, *[MOVIE] * length, END] for length in (0, 9, 3)] + [HATES]
    requests = [([row], [[1] * len(row)]) for row in rows] + [([LIKES, LIKES[::-1]], [[1] * 4, [1] * 4])]
    before = largest_batch(merging_triton)
    answers = asyncio.run(ask_all(merging_triton, requests))
    assert largest_batch(merging_triton) >= before >= 6
    for row, answer in zip(rows, answers, strict=False):
        np.testing.assert_allclose(answer, ask(merging_triton, [row]), atol=1e-5)
    assert answers[-1].shape == (2, 2)


def test_three_labels_are_three_logits(tmp_path):
    write_bundle(tmp_path / "model_repository", labels=3)
    with running_triton(tmp_path / "model_repository", tmp_path / "var") as triton:
        assert ask(triton, [LIKES]).argmax() == 2
        assert ask(triton, [HATES]).argmax() == 0
