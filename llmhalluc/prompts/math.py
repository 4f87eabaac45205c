"""Grade-school mathematics: the prompt."""


def prompt_text(question: str) -> str:
    """Return the question and the cue to answer it; the solution follows after a space."""
    return f"Question: {question.strip()}\nAnswer:"
