"""The parts of a .vdmz file: the entropy coder, its stack of words, the batches and the header."""

import hashlib
import io
import json
import math
from itertools import chain

import numpy as np
import pytest
import torch

from flows.compression import batches, words
from flows.compression.batches import groups
from flows.compression.coding import exactly
from flows.compression.header import DICTIONARY, Header, packed, packed_text, read_header
from flows.compression.rans import Rans
from flows.compression.words import Stack
from flows.core.errors import Exit, UserError
from vdm.codec import TOTAL, encode_plainly


def random_table(rows: int, symbols: int) -> np.ndarray:
    """Return a table of random cumulative frequencies for each row, from 0 to TOTAL."""
    cuts = np.sort(np.random.default_rng(0).integers(1, TOTAL, (rows, symbols - 1)), axis=1)
    return np.concatenate([np.zeros((rows, 1)), cuts, np.full((rows, 1), TOTAL)], axis=1).astype(np.int64)


@pytest.mark.parametrize("scattered", [True, False])
def test_the_coder_returns_symbols_in_their_optimal_number_of_bits(scattered: bool) -> None:
    random, table = np.random.default_rng(1), random_table(5, 9)
    rows = random.integers(0, 5, 3000)
    symbols = np.array([np.searchsorted(table[row], random.integers(TOTAL), side="right") - 1 for row in rows])
    start, frequency = table[rows, symbols], table[rows, symbols + 1] - table[rows, symbols]
    coder = Rans(Stack(io.BytesIO(), bytes(32)).take, state=1)
    before, bits = coder.flushed(), coder.bits
    coder.push(np.array([0, 17, TOTAL - 1]), np.ones(3, np.int64))
    coder.push(start, frequency, scattered=scattered)
    assert coder.bits - bits == pytest.approx((32 - np.log2(frequency)).sum() + 3 * 32, abs=1e-3)
    read_again = Rans(iter([coder.flushed()]).__next__, state=0)
    assert (read_again.pop(table, rows, scattered=scattered) == symbols).all()
    assert read_again.pop_plain(3).tolist() == [0, 17, TOTAL - 1]
    assert read_again.flushed() == before


def test_noise_that_is_drawn_from_scattered_bits_does_not_follow_what_was_pushed() -> None:
    table, rows = np.array([[0, TOTAL // 2, TOTAL]]), np.zeros(1000, np.int64)
    means = []
    for scattered in (False, True):
        coder = Rans(Stack(io.BytesIO(), bytes(32)).take, state=1)
        # Of 4096 symbols always one of the last 256, as under a wrong model.
        symbols = np.random.default_rng(0).integers(4096 - 256, 4096, 4000)
        coder.push(symbols * (TOTAL // 4096), np.full(4000, TOTAL // 4096))
        means.append(coder.pop(table, rows, scattered=scattered).mean())
    biased, fair = means
    assert abs(fair - 0.5) < 4 * 0.5 / math.sqrt(1000) < abs(biased - 0.5)


def test_a_stack_on_disk_returns_its_words_and_then_those_that_every_decoder_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(words, "SPILLED", 10)
    digest = bytes(range(32))
    stack, memory = Stack(io.BytesIO(), digest), list(range(35))
    stack.spill(memory)
    assert (memory, stack.num_words) == ([25, 26, 27, 28, 29, 30, 31, 32, 33, 34], 25)
    assert stack.take() == list(range(15, 25))
    assert [word for block in stack.blocks() for word in np.frombuffer(block, "<u4")] == list(range(14, -1, -1))
    stack.file.seek(0, 2)
    assert stack.take() + stack.take() == [*range(5, 15), *range(5)]
    assert stack.take() == words.bottom(digest, 0)
    assert [*stack.take(), *stack.take()][::-1] == words.bottom(digest, 2)[:2]
    assert stack.depth == 2


@pytest.mark.parametrize("count", [1, 2, 3, 50, 700])
@pytest.mark.parametrize("most", [1, 7, 64])
def test_batches_are_the_same_in_both_directions(count: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CHECKED_DIMS", 180)  # six images
    encoding = list(groups(count, 30, most, decoding=False))
    decoding = list(groups(count, 30, most, decoding=True))
    assert [group[::-1] for group in encoding[::-1]] == decoding
    flat = [batch for group in decoding for batch in group]
    assert [number for batch in flat for number in batch] == list(range(count))
    assert max(map(len, flat)) <= most
    assert all(flat)  # no batch is empty


def test_the_description_that_most_files_have_takes_few_bytes() -> None:
    text = DICTIONARY[DICTIONARY.rindex(b'{"image_shape"') :]
    header = Header(**json.loads(text))
    content, checksum = packed(header, "ab" * 32)
    assert len(content) < 40
    assert read_header(io.BytesIO(content), "x") == (header, "ab" * 8, checksum)


def test_pictures_of_two_channels_are_refused() -> None:
    described = json.loads(DICTIONARY[DICTIONARY.rindex(b'{"image_shape"') :]) | {"pictures": True}
    text = json.dumps(described | {"image_shape": [2, 8, 8]}).encode()
    with pytest.raises(UserError, match="x: damaged: pictures of 2 channels") as error:
        read_header(io.BytesIO(packed_text(text, "ab" * 32)), "x")
    assert error.value.code == Exit.MISSING


def test_a_file_of_this_version_has_the_batches_that_its_readers_expect() -> None:
    """Other batches need another version in the header, or files that exist could no longer be decoded."""
    sizes = [[len(batch) for batch in group] for group in groups(61, 683, 3, decoding=False)]
    assert list(chain(*sizes)) == [*[1] * 24, *[2] * 6, *[3] * 8, 1]
    assert [sum(group) for group in sizes] == [*[6] * 10, 1]
    assert [batches.most_plain(levels) for levels in (2, 17, 256)] == [8, 2, 1]


def test_a_file_of_this_version_has_the_code_that_its_readers_expect() -> None:
    """Another code needs another version in the header, or files that exist could no longer be decoded."""
    stack = Stack(io.BytesIO(), bytes(32))
    coder = Rans(stack.take, state=1)
    encode_plainly(coder, np.arange(90, dtype=np.uint8).reshape(3, 1, 6, 5) % 17, 17)
    coder.push(np.arange(50) * 2**20, np.full(50, 2**20), scattered=True)
    stack.put(coder.flushed())
    stack.file.seek(0)
    assert [words.initial_word(place) for place in range(2)] == [191631630, 3336172768]
    assert hashlib.sha256(stack.file.read()).hexdigest()[:16] == "2941a54ede66f4cc"


def test_sums_are_computed_with_the_threads_of_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before, flags = torch.get_num_threads(), (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    with exactly(before + 1):
        assert torch.get_num_threads() == before + 1
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    assert torch.get_num_threads() == before
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == flags
