"""The random streams: the state that a chunk starts from."""

import pytest
import torch

from builder.initialize.streams import WORDS, Stream, generator, generator_state, stream_words


def seeded(seed):
    """The words that MT19937 makes of a 32-bit seed (Matsumoto and Nishimura 1998, as of 2002)."""
    words = [seed]
    for number in range(1, WORDS):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + number) & 0xFFFFFFFF)
    return b"".join(word.to_bytes(4, "little") for word in words)


@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1])
def test_state_made_from_words_is_that_of_a_freshly_seeded_generator(seed):
    theirs = torch.Generator().manual_seed(seed)
    ours = torch.Generator().set_state(generator_state(seeded(seed)))
    for draw in (
        lambda generator: torch.randn(2000, generator=generator),
        lambda generator: torch.rand(2000, generator=generator, dtype=torch.float64),
        lambda generator: torch.randperm(2000, generator=generator),
    ):
        assert torch.equal(draw(ours), draw(theirs))


def test_streams_differ_though_their_64_bit_keys_share_the_low_32_bits():
    """What torch itself makes equal: two seeds with equal low halves."""
    low, high = 7, 7 + 2**32
    assert torch.equal(
        torch.rand(5, generator=torch.Generator().manual_seed(low)),
        torch.rand(5, generator=torch.Generator().manual_seed(high)),
    )
    assert not torch.equal(torch.rand(5, generator=generator(low, "w")), torch.rand(5, generator=generator(high, "w")))


def test_all_words_of_the_state_depend_on_seed_name_and_chunk():
    words = [stream_words(*key) for key in ((0, "w", 0), (1, "w", 0), (0, "v", 0), (0, "w", 1))]
    assert {len(found) for found in words} == {4 * WORDS}
    for found in words[1:]:
        same = sum(a == b for a, b in zip(found, words[0], strict=True))
        assert same < 4 * WORDS / 50, "one byte in 256 agrees by chance"


def test_one_generator_goes_to_any_chunk_whatever_it_drew_before():
    stream = Stream()
    torch.randn(999, generator=stream.at(3, "w", 5))
    again = torch.randn(10, generator=stream.at(3, "w", 6))
    assert torch.equal(again, torch.randn(10, generator=generator(3, "w", 6)))


def test_names_and_numbers_do_not_run_into_each_other():
    assert stream_words(1, "w", 11) != stream_words(11, "w", 1)
    assert stream_words(0, "w.1", 1) != stream_words(0, "w.11", 1) != stream_words(0, "w.1", 11)
