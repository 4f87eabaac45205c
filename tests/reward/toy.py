"""Problems, a tokenizer of characters or words, and traces to reward."""

from llmhalluc.backtrack import apply_backtracking

BT, EOS = 1, 2
MATH = ("math", {"question": "A bakery sells 12 trays of 4 rolls and 6 pies. 5 * 7 = 35 is on a sign. How many pieces?",
                 "answer": "12*4 = <<12*4=48>>48 rolls\n48+6 = <<48+6=54>>54\n#### 54"})  # fmt: skip
HONEST = "12*4 = 48 rolls\n48+6 = 54\n#### 54"
SUDOKU = ("sudoku", {"puzzle": "12..34..2...4...", "solution": "1234341221434321"})
MOVES = "c1=3 d1=4 c2=1 d2=2 b3=1 c3=4 d3=3 b4=3 c4=2 d4=1"


class Characters:
    """A tokenizer with a token a character: its code point; 0 to 2 are special, 1 is the BACKTRACK."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens: bool = False) -> str:
        return "".join(chr(i) for i in ids if i > 2)


class Words:
    """A tokenizer with a token a word of Sudoku."""

    def __init__(self):
        self.words = ["<pad>", "<bt>", "<eos>", "solve", "junk"]
        self.words += [f"{column}{row}={digit}" for row in range(1, 5) for column in "abcd" for digit in range(1, 5)]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [self.words.index(word) if word in self.words else 4 for word in text.split()]

    def decode(self, ids, skip_special_tokens: bool = False) -> str:
        return " ".join(self.words[i] for i in ids if i > 2)


def corrected(before: str, error: str, after: str, tokenizer=None) -> list[int]:
    """A trace in which `error` is written after `before`, erased, and `after` written."""
    tokenizer = tokenizer or Characters()
    wrong = tokenizer.encode(error)
    trace = [*tokenizer.encode(before), *wrong, *[BT] * len(wrong), *tokenizer.encode(after), EOS]
    assert apply_backtracking(trace, BT)[-1] == EOS
    return trace
