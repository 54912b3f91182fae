"""Text as streams of tokens."""

import numpy as np
import pytest
import torch

from ofa.artefacts import ArtefactError
from ofa.training.text import END, UNKNOWN, TextError, batchify, cut, load_text, piece


def written(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def words(corpus, stream):
    return [corpus.vocabulary.tokens[i] for i in stream]


def test_folder_is_read_as_three_texts_with_the_vocabulary_of_the_first(tmp_path):
    corpus = load_text(written(tmp_path, train="b a b\n\nb c\n", valid="a d\n", test="b  e\tc"))
    assert corpus.vocabulary.tokens == (END, "b", UNKNOWN, "a", "c")
    assert words(corpus, corpus.train) == ["b", "a", "b", END, END, "b", "c", END]
    assert words(corpus, corpus.valid) == ["a", UNKNOWN, END]
    assert words(corpus, corpus.test) == ["b", UNKNOWN, "c", END]
    assert corpus.train.dtype == torch.long


def test_file_is_split_by_lines_and_no_line_is_in_two_parts(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"word{i}\n" for i in range(20)))
    corpus = load_text(path)
    assert [len(stream) for stream in (corpus.train, corpus.valid, corpus.test)] == [32, 4, 4]
    assert words(corpus, corpus.train)[::2] == [f"word{i}" for i in range(16)]
    assert set(words(corpus, corpus.valid)) | set(words(corpus, corpus.test)) == {UNKNOWN, END}


def test_characters_are_tokens_too(tmp_path):
    corpus = load_text(written(tmp_path, train="ab é\r\n", valid="ba", test="x b"), kind="characters")
    assert words(corpus, corpus.train) == ["a", "b", " ", "é", END]
    assert words(corpus, corpus.test) == [UNKNOWN, " ", "b", END]


def test_vocabulary_is_limited_to_the_most_frequent_words(tmp_path):
    folder = written(tmp_path, train="a a a b b c c c c\n", valid="a b c", test="a b c")
    corpus = load_text(folder, max_vocabulary=4)
    assert set(corpus.vocabulary.tokens) == {"a", "c", END, UNKNOWN}
    assert words(corpus, corpus.test) == ["a", UNKNOWN, "c", END]
    assert load_text(folder, max_vocabulary=5).vocabulary == load_text(folder).vocabulary


def test_digest_tells_texts_apart(tmp_path):
    first = load_text(written(tmp_path, train="a b", valid="c d", test="e f")).sha256
    assert load_text(tmp_path).sha256 == first
    assert load_text(written(tmp_path, train="a b", valid="c d", test="e g")).sha256 != first
    assert load_text(written(tmp_path, train="a b\nc", valid="d", test="e f")).sha256 != first


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train": b"a b \xff\n", "valid": "a b", "test": "a b"}, r"train.txt: not a UTF-8 text \(byte 4\)"),
        ({"train": "a b", "valid": "a b", "test": ""}, "the test text has 1 tokens, expected a text"),
    ],
)
def test_bad_texts_are_refused(tmp_path, texts, message):
    with pytest.raises(TextError, match=message):
        load_text(written(tmp_path, **texts))


def test_missing_and_short_texts_are_refused(tmp_path):
    with pytest.raises(ArtefactError, match="no such file, expected a UTF-8 text"):
        load_text(tmp_path / "none.txt")
    with pytest.raises(ArtefactError, match=r"train.txt: no such file"):
        load_text(tmp_path)
    with pytest.raises(TextError, match="1 lines, expected at least 10"):
        load_text(written(tmp_path, short="a b c") / "short.txt")


@pytest.mark.parametrize(("arguments", "message"), [({"kind": "bytes"}, "unknown kind"), ({"max_vocabulary": 2}, "at least 3")])
def test_bad_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(TextError, match=message):
        load_text(written(tmp_path, train="a b", valid="a b", test="a b"), **arguments)


def test_texts_stand_side_by_side():
    text = batchify(torch.arange(11), 3)
    assert text.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    tokens, targets = piece(text, 0, 2)
    assert tokens.tolist() == [[0, 3, 6], [1, 4, 7]]
    assert targets.tolist() == [[1, 4, 7], [2, 5, 8]]
    with pytest.raises(TextError, match="text of 11 tokens is too short for 6 side by side"):
        batchify(torch.arange(11), 6)


@pytest.mark.parametrize("time", [2, 3, 40, 1000])
@pytest.mark.parametrize("bptt", [1, 5, 35])
def test_pieces_cover_the_text_once(time, bptt):
    pieces = cut(time, bptt, np.random.default_rng(0))
    covered = [start + i for start, length in pieces for i in range(length)]
    assert covered == list(range(time - 1))
    assert all(5 <= length <= bptt + 20 for _, length in pieces[:-1])


def test_pieces_are_of_the_length_asked_for_on_average_and_differ_between_epochs():
    lengths = [[length for _, length in cut(100_000, 35, np.random.default_rng((0, epoch)))] for epoch in range(2)]
    # 95 % around 35, 5 % around 17.5, which int() makes half a token shorter
    assert np.mean(lengths[0]) == pytest.approx(0.95 * 34.5 + 0.05 * 17, abs=0.5)
    assert lengths[0] != lengths[1]
