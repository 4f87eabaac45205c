"""Where something is taken back, as tokens; and the controls."""

import random

import pytest

from llmhalluc.interp.events import (
    Event,
    controls,
    find_erasures,
    find_phrases,
    pieces,
    spread,
    token_at,
    token_starts,
)
from tests.decoding.bpe import byte_tokenizer
from tests.interp.models import BT, sample

TOKENIZER = byte_tokenizer()
TRIGGERS = ["Wait", "Hold on", "No,"]


def phrases(text):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    found = find_phrases(ids, TOKENIZER.decode, TRIGGERS)
    starts = token_starts(ids, TOKENIZER.decode)
    for event in found:  # the onset token holds the first letter
        assert token_at(starts, event.char) == event.token
        assert event.phrase[0].lower() in "".join(pieces(ids, TOKENIZER.decode)[event.token]).lower()
    return [(event.phrase, event.char, event.strict) for event in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 2 = 5. Wait, it is 4.", [("Wait", 11, True)]),
        ("Wait, no", [("Wait", 0, True)]),
        ("It is 5\nHold on", [("Hold on", 8, True)]),
        ("I wait here", [("Wait", 2, False)]),
        ("they Wait here", [("Wait", 5, False)]),
        ("Waiting is hard; Waiter", []),
        ("so ... Wait, 4", [("Wait", 7, True)]),
        ("Is it 5? No, it is 4. Not 3", [("No,", 9, True)]),
        ("é é é. Wait, 🙂 Hold on", [("Wait", 7, True), ("Hold on", 15, False)]),
        ("", []),
    ],
)
def test_phrases_are_found_as_whole_words_and_strictly_at_the_start_of_a_sentence(text, expected):
    assert phrases(text) == expected


def test_a_run_of_backtracks_is_one_event_and_strict_where_it_erases():
    ids = [BT, 7, 8, BT, BT, BT, 9, BT]
    found = find_erasures(ids, BT, lambda ids: "x" * len(ids))
    assert [(event.token, event.burst, event.strict) for event in found] == [(0, 1, False), (3, 3, True), (7, 1, True)]


def test_pieces_are_the_text_also_of_characters_that_tokens_share():
    text = "a🙂é b"
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert "".join(pieces(ids, TOKENIZER.decode)) == text


def events_at(*places):
    return [(at, Event("Wait", 0, token, True, 1)) for at, token in places]


def test_a_control_is_at_the_same_place_of_a_sample_that_takes_nothing_back():
    samples = [sample([1, 2], list(range(10, 20)), "a"), sample([1, 2, 3], list(range(30, 40)), "b")]
    samples += [sample([1], list(range(40, 50)), "c")]
    (control,) = controls(samples, events_at((0, 4)), random.Random(0))
    assert control.at in (1, 2) and control.target == 14
    assert control.row == len(samples[control.at]["prompt_ids"]) + 4 - 1
    first, second = controls(samples, events_at((0, 4), (1, 4)), random.Random(0))
    assert first.at == second.at == 2 and (first.target, second.target) == (14, 34)


def test_where_every_sample_takes_something_back_a_control_keeps_away_from_the_events():
    samples = [sample([1], list(range(10)), "a"), sample([1], list(range(10)), "b")]
    found = controls(samples, events_at((0, 4), (1, 4)), random.Random(0))
    assert [point.row for point in found] == [5, 5]  # tokens 3 and 4 are the event's; that at row 5 is the nearest


def test_an_event_without_any_other_sample_has_no_control_and_stays():
    assert controls([sample([1], [4, 5, 6])], events_at((0, 1)), random.Random(0)) == [None]


def test_events_are_spread_over_the_problems():
    events = events_at(*[(0, token) for token in range(20)], (1, 3), (2, 3))
    chosen = spread(events, lambda at: f"problem {at}", 6, random.Random(0))
    assert len(chosen) == 6 and {20, 21} <= set(chosen)
    assert spread(events, lambda at: "p", 50, random.Random(0)) == list(range(22))
