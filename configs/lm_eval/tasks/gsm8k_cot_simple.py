"""GSM8K as questions and answers that reason first and end in "The answer is N."."""

from llmhalluc.tasks.math.solution import clean_solution


def prompt(doc: dict) -> str:
    """`Q: …` and the cue to answer."""
    return f"Q: {doc['question'].strip()}\nA:"


def solution(doc: dict) -> str:
    """The reasoning of a GSM8K answer, its last line turned into a sentence."""
    reasoning, _, number = clean_solution(doc["answer"]).rpartition("####")
    return f"{reasoning.strip()} The answer is {number.strip()}."


def examples() -> list[dict[str, str]]:
    """Worked examples, in the format of the data set's own records."""
    return [{"question": question, "answer": answer} for question, answer in _EXAMPLES]


_EXAMPLES = (
    (
        "A bakery fills 14 trays with 12 rolls each. By noon 95 rolls are sold. How many rolls are left?",
        "The bakery bakes 14 * 12 = 168 rolls. After the sales 168 - 95 = 73 rolls are left.\n#### 73",
    ),
    (
        "Mira reads 18 pages on every weekday and 40 pages on each day of the weekend. How many pages does she read "
        "in two weeks?",
        "Five weekdays make 5 * 18 = 90 pages and the weekend 2 * 40 = 80 pages, so a week makes 90 + 80 = 170 pages. "
        "Two weeks make 2 * 170 = 340 pages.\n#### 340",
    ),
    (
        "A jacket costs $60. It is sold at a discount of 25%, and a tax of $4 is added. What does the buyer pay?",
        "The discount is 60 * 25 / 100 = 15 dollars, so the jacket costs 60 - 15 = 45 dollars. With the tax the buyer "
        "pays 45 + 4 = 49 dollars.\n#### 49",
    ),
    (
        "Four friends share a taxi. The ride costs $2.50 to begin with and $1.50 a kilometre, and they ride 9 "
        "kilometres. How much does each of them pay if they split the cost evenly?",
        "The distance costs 9 * 1.5 = 13.5 dollars, so the ride costs 2.5 + 13.5 = 16 dollars. Split by four that is "
        "16 / 4 = 4 dollars each.\n#### 4",
    ),
    (
        "Omar is 6 years older than twice the age of Lea. Lea is 11. How old will Omar be in 5 years?",
        "Twice the age of Lea is 2 * 11 = 22, so Omar is 22 + 6 = 28. In five years he will be 28 + 5 = 33.\n#### 33",
    ),
    (
        "A tank holds 240 litres. One pipe fills 8 litres a minute while a leak loses 2 litres a minute. How many "
        "minutes does it take to fill the empty tank?",
        "Every minute the tank gains 8 - 2 = 6 litres. Filling it takes 240 / 6 = 40 minutes.\n#### 40",
    ),
    (
        "A school orders 5 boxes of 24 pencils and hands out 3 pencils to each of its 37 pupils. How many pencils are "
        "left over?",
        "The school has 5 * 24 = 120 pencils and hands out 37 * 3 = 111. That leaves 120 - 111 = 9 pencils.\n#### 9",
    ),
    (
        "Nadia earns $15 an hour for 40 hours and half as much again for every hour beyond. How much does she earn in "
        "a week of 46 hours?",
        "For 40 hours she earns 40 * 15 = 600 dollars. An hour beyond pays 15 + 15 / 2 = 22.5 dollars, and there are "
        "46 - 40 = 6 of them: 6 * 22.5 = 135 dollars. Together that is 600 + 135 = 735 dollars.\n#### 735",
    ),
)
