"""A statement in plain characters: LaTeX, Markdown, currency and typographic signs taken off or spelt out."""

import re
import unicodedata

_SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>|</?[A-Za-z]{1,12}>")  # <|im_end|>, </s>
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathbf|mathrm|mathit|mbox|num|boxed|fbox|underline)\s*\{([^{}]*)\}"
)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?=\s*[0-9])")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s*([0-9]))")
_POWER = re.compile(r"\^\s*\{([^{}]*)\}")
_GROUP = re.compile(r"(?<![\\_A-Za-z}]){([^{}\\]*)}")
_CURRENCY = re.compile(r"\b(?:USD|US|EUR|GBP|CAD|AUD|INR|Rs\.?)\s*(?=[0-9$€£])|[€£¥₹]|\\?\$")
_UNIT_POWER = re.compile(
    r"(?<![A-Za-z])([mcdk]?m|in|ft|yd|mi|inch|inches|feet|foot|yards?|miles?|(?:centi|kilo)?met(?:er|re)s?)"
    r" ?\^?[23](?![0-9])"
)
# Applied in this order; what LaTeX only spaces or sizes goes.
_REPLACED = {
    "\\left": "", "\\right": "", "\\displaystyle": "", "\\!": "", "{,}": ",", "\\,": " ", "\\;": " ", "\\:": " ",
    "\\ ": " ", "~": "≈", "\\quad": " ", "\\(": " ", "\\)": " ", "\\[": " ", "\\]": " ", "\\%": "%",
    "\\times": "*", "\\cdot": "*", "\\div": "/", "\\approx": "≈", "\\simeq": "≈", "^\\circ": " degrees",
    "×": "*", "·": "*", "⋅": "*", "÷": "/", "\u2212": "-", "\u2013": "-", "°": " degrees", "²": "^2", "³": "^3",
    "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'", "`": "", '"': "", "\u201c": "", "\u201d": "",
    "\u2044": "/",
    "\u2192": "", "\u21d2": "", "=>": "", "->": "", "\\to ": "", "\\rightarrow": "",
}  # fmt: skip
OPENED, CLOSED = "⟨", "⟩"  # about a fraction that is one number, as in `7 1/2` written with a fraction bar


def plain(text: str) -> str:
    """Return the text with plain signs: `\\$1{,}234\\text{ apples}` -> `1,234 apples`; unknown commands stay."""
    text = _SPECIAL.sub(" ", text)
    text = "".join(map(_plain_character, text))
    for sign, replacement in _REPLACED.items():
        text = text.replace(sign, replacement)
    text = _BARE_BOX.sub(" ", text)
    for _ in range(3):  # nested as in `\boxed{\text{a \textbf{b}}}`
        text = _WRAPPED.sub(r" \1 ", text)
        text = _FRACTION.sub(_plain_fraction, text)
        text = _POWER.sub(r"^(\1)", text)
        text = _GROUP.sub(r"\1", text)
    text = _CURRENCY.sub("", text)
    text = re.sub(r"(?<=[0-9]) ?\*\* ?(?=[0-9])", "^", text)
    text = re.sub(r"\*\*|__", "", text)
    text = _UNIT_POWER.sub(r"\1", text)
    return text.strip(" \t\n*")


def _plain_character(character: str) -> str:
    """A vulgar fraction as a number of its own."""
    if character.isascii():
        return character
    spelt = unicodedata.normalize("NFKC", character) if unicodedata.numeric(character, None) is not None else ""
    if "\u2044" in spelt:  # ½ is 1⁄2
        return f" {OPENED}{spelt.replace(chr(0x2044), '/')}{CLOSED}"
    return character


def _plain_fraction(match: re.Match[str]) -> str:
    above, below = match[1] or match[3] or "", match[2] or match[4] or ""
    if above.strip().isdigit() and below.strip().isdigit():
        return f" {OPENED}{above.strip()}/{below.strip()}{CLOSED}"
    return f"(({above})/({below}))"
