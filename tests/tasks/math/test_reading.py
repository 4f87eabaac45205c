"""Statements and their exact values, in every way they can be meant; nothing behind the arrow: no number is stated.

The table is read line by line; `10:30!` is a literal that is compared as it stands.
"""

import pytest

from llmhalluc.tasks.math.answers import final_answer
from llmhalluc.tasks.math.plain import plain
from llmhalluc.tasks.math.process import format_quality, judge_calculation, process_quality
from llmhalluc.tasks.math.reading import read_statement

TABLE = """
6 times 7 → 42
6 Times 7 → 42
6 x 7 → 42
6 X 7 → 42
6 multiplied by 7 → 42
6 Multiplied By 7 → 42
84 divided by 2 → 42
84 Divided BY 2 → 42
84 divided by →
84 divided apples →
6 multiplied apples →
6 times → 6
6 times the 7 →
40 plus 2 → 42
40 plus →
44 minus 2 → 42
44 Minus 2 → 42
44 minus →
minus 42 → -42
Negative 42 → -42
-42 plus 84 → 42
(40 plus 2) → 42
(40 plus 2) times 2 → 84
50% of 84 → 42
50% Of 84 → 42
half of 84 →
50 percent of 84 → 42
50 Percent of 84 → 42
50 percentage of 84 → 42
42 percent → 42 21/50
42 Percentage → 42 21/50
42 PERCENT → 42 21/50
42% → 42 21/50
2 by 3 →
of 42 → 42
3 thousand → 3000
3 Thousand → 3000
3 k → 3000
3k → 3000
3 K → 3000
3 million dollars → 3000000
2 dozen eggs → 24
3 hundred → 300
3 hundred thousand → 300000
3 thousand plus 5 → 3005
2.5 million → 2500000
5 dozen plus 2 → 62
(2 + 3) dozen →
((6) * (7)) → 42
((40 + 2)) - 0 → 42
6*7 → 42
6 * 7 → 42
6 ** 2 → 36
6 - 7 → -1
40 + 2 = 42 → 42
40 + 2 = 42 apples → 42
42 = 40 + 2 → 42
40 + 2 = 43 → 43
42 or 42 → 42
42 or 43 →
42, that is 42 apples → 42
42 (that is 42) → 42
6 * 7 which is 42 → 42
6 * 7 which equals 42 → 42
6 * 7 is 42 → 42
6 times 7 is equal to 42 → 42
6 times 7 equals 42 → 42
42 = forty-two → 42
forty-two = 42 → 42
42, i.e. 42 → 42
1/2 + 1/2 → 1
1 1/2 → 3/2
1 1/2 + 1/2 → 2
3/4 of an hour → 3/4
3/4 hour → 3/4
three quarters → 3/4
three-quarters → 3/4
three quarters of 8 →
three quarters of them →
two thirds → 2/3
one half → 1/2
a half →
five and a half → 11/2
5 and a half → 11/2
5 and three quarters → 23/4
5 and a third hours → 16/3
5 and one half → 11/2
6 and a half dozen →
seven and a quarter → 29/4
seven and →
twenty and a half → 41/2
one hundred → 100
one hundred and →
one hundred and five → 105
one hundred and a half → 201/2
two hundred thousand → 200000
two hundred thousand and five → 200005
two thousand three hundred forty-five → 2345
three million two hundred thousand and ten → 3200010
nineteen hundred → 1900
two dozen → 24
two score and ten → 50
zero → 0
Zero → 0
FORTY-TWO → 42
Five Apples → 5
twenty-one → 21
ninety nine → 99
thousand two →
five tenths → 1/2
five fifths → 1
two halves → 1
7 dollars and 50 cents → 15/2 750
7 dollars, 50 cents → 15/2 750
7 dollars 50 cents → 15/2 750
2 hours 30 minutes → 5/2 150
2 hours and 30 minutes → 5/2 150
2 hours and 30 apples →
30 minutes and 2 hours →
2 feet 6 inches → 5/2 30
90 minutes → 90
42 minutes = 0.7 hours → 7/10 42
42 minutes = 7 hours →
0.5 hours or 30 minutes → 30 1/2
150 cents → 150 3/2
50 cents = $0.50 → 1/2 50
1 dollar = 100 cents → 100 1
2 kg = 2000 g → 2000 2
2 km = 2000 m → 2000 2
3 feet = 36 inches → 36 3
3 feet = 1 yard → 1 3
12 months = 1 year → 1 12
1 pound = 16 oz → 16 1
2 l = 2000 ml → 2000 2
42km → 42
42 km → 42
42m → 42
42th →
42nd →
42 m/s → 42
42am → 42
42 AM → 42
42h → 42
42hr → 42
42hrs → 42
42lb → 42
42KG → 42
42 widgets → 42
42widgets →
42 apples/day → 42
3 weeks = 21 days → 21 3
2 days = 48 hours → 48 2
1 min = 60 sec → 60 1
42 pounds → 42
42 dollars → 42
7 dollars and 50 pieces →
7 dollars and 500 dollars →
40 + 2 dollars → 42
20% + 22% → 21/50
20% + 22% = 43% → 43 43/100
10% of 50% → 1/20
100% - 58% → 21/50
two millions → 2000000
forty - two → 42
forty two apples → 42
a dozen →
one dozen → 12
two and a half thousand →
six hundred → 600
six hundred forty → 640
six thousand six → 6006
one thousand one hundred one → 1101
eleven → 11
twelve eggs → 12
fifty cents → 50
1 cent → 1 1/100
2 hours 30 minutes = 9000 seconds → 9000 5/2 150
6 * 7 hours = 43 hours → 43
2 * 3 hours 30 minutes = 7 hours → 7
seventy five percent → 75 3/4
one third → 1/3
two and two thirds → 8/3
three fifths → 3/5
one tenth → 1/10
nine tenths → 9/10
four and one third → 13/3
four and a fifth → 21/5
five and apples →
2 score → 40
3 weeks and 2 days → 23/7 23
4 feet, 3 inches → 17/4 51
1 pound 8 ounces → 3/2 24
2 minutes 5 seconds → 25/12 125
3 days and 12 hours → 7/2 84
1 week 1 day → 8/7 8
2 yards 1 foot → 7/3 7
1 mile = 5280 feet → 5280 1
3 kg and 500 g → 7/2 3500
1.5 l = 1500 ml → 1500 3/2
2 meters 50 centimeters → 5/2 250
1 m 20 cm → 6/5 120
5 kilometers = 5000 meters → 5000 5
2 hr 30 min → 5/2 150
10 mm = 1 cm → 1 10
2 grams = 2000 milligrams → 2000 2
120 minutes or 2 hours → 2 120
120 minutes or 3 hours →
1/4 hour = 15 minutes → 15 1/4
42 cents → 42 21/50
42 years → 42
42F → 42
42%. → 42 21/50
x = 42% → 42 21/50
42 years old → 42
(6)(7) → 42
2(21) → 42
42 / 1 → 42
84/2 → 42
84 ÷ 2 → 42
6 × 7 → 42
6·7 → 42
44 − 2 → 42
-(-42) → 42
+42 → 42
40+2 → 42
6*(3+4) → 42
(3+4)*6 = 42 → 42
((3+4))*6 → 42
2^5 + 10 → 42
2**5 → 32
10/4 → 5/2
10 / 4 apples → 5/2
7/2 hours → 7/2
7/2 hours = 3.5 hours → 7/2
42 hours/week → 42
42 miles per hour → 42
42 per hour → 42
42, → 42
42; → 42
42! →
42 -1 → 41
42 - 1 → 41
42-1 → 41
a total of 42 → 42
total: 42 → 42
Total = 42 → 42
n = 42 → 42
n=42 → 42
n = 6*7 = 42 → 42
x + 42 →
x+42 →
cost = 42 dollars → 42
cost is 42 → 42
42 = x →
twice 42 →
double 42 →
half 42 →
not 42 →
about 42 → 42
over 42 →
at least 42 →
less than 42 →
42 or more →
42 or less →
42 more → 42
42 more than →
42 fewer than →
42 and a half → 85/2
42 plus x →
42 plus 1 → 43
42 squared →
6 squared →
42 cubed →
42 to the power of 2 →
42 to 43 →
42-43 → -1
42 through 44 →
from 42 →
42 if →
42 unless →
42 times as many →
42 over 2 →
42 / x →
42 ± 1 →
+/- 42 →
42(x) →
42 (6 x 7) → 42
42 (six sevens) → 42
42 (or 43) →
42 (approximately) → 42
42. Wait, 43 →
42, no 43 →
42 maybe 43 →
42 is wrong →
42, sorry, 43 →
42, I mean 43 →
42 is the answer → 42
a loss of 42 → -42 42
a debt of $42 → -42 42
loss of 42 → -42 42
42:30 → 42:30!
10:30 → 10:30!
10:30 AM → 10:30am!
3 : 4 → 3:4!
1:2:3 → 1:2:3!
1:2:3:4 → 1:2:3:4!
two k → 2000
five k apples → 5000
five and a dog →
five and a →
eight or so →
eight or nine →
eight to ten →
eight to →
eight than →
eight of them →
seventy five percent left → 75 3/4
two hundreds → 200
three hundreds and two → 302
half a dozen →
half an hour → 1/2
42 = forty-three →
42 or forty-three →
42 or forty-two → 42
6 * 7 = forty-two → 42
6 * 7 = forty-three → 43
40 + 2 which is forty-two apples → 42
42 minutes = forty minutes →
42 = forty-two = 42 → 42
42 = forty-two = 43 →
7 = seven and a half →
7.5 = seven and a half → 15/2
one half hour → 1/2
three quarters full → 3/4
a third →
two thousands → 2000
two thousand → 2000
twelve dozens → 144
k apples →
42 equals forty two dollars → 42
"""
ROWS = [line.split(" →") for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("statement", "values"), ROWS, ids=[row[0] for row in ROWS])
def test_law9_a_statement_has_its_values(statement, values):
    reading = read_statement(statement)
    assert (" ".join(map(str, reading.values)) or (reading.literal and f"{reading.literal}!")) == values.strip()


@pytest.mark.parametrize(
    "before",
    [
        "",
        "The final ",
        "Final ",
        "My ",
        "our ",
        "Your ",
        "The correct ",
        "Numerical ",
        "> ",
        "# ",
        "- ",
        "x y\n",
        "**",
        "The ",
        "So ",
        "x y\nEach\n",
        "x y\n\n",
        "athe" + 37 * " ",
    ],
)
def test_a_title_marks_an_answer(before):
    found = final_answer(f"{before}answer: 42")
    assert (found.text, found.start, found.after, found.complete) == ("42", len(before), "", False)


@pytest.mark.parametrize(
    "before", ["Points per ", "Each ", "A ", "X ", "x y\nEach ", "every student of the class gives one more "]
)
def test_a_word_before_it_makes_it_no_title(before):
    assert final_answer(f"{before}answer: 42") is None
    assert final_answer(f"{before}answer = 42") is None
    assert final_answer(f"{before}answer: 42" + 30 * "\nso") is None
    assert final_answer(f"{before}answer was 42").text == final_answer(f"{before}answer equals 42").text == "42"
    assert final_answer(f"{before}answer is 42").text == final_answer(f"{before}answer IS: 42").text == "42"
    assert final_answer(f"{before}answer: 42", flexible=True).reading.values == (42,)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed42", ("42", 0, "", False)),
        ("So \\boxed42 and more", ("42", 3, "and more", True)),
        ("So \\boxed{42}", ("42", 3, "", True)),
        ("\\boxed{\\frac{84}{2}} it is", ("\\frac{84}{2}", 0, "it is", True)),
        ("\\boxed{42", None),
        ("\\boxed{42} X", ("42", 0, "X", True)),
        ("#### 42. Sell", ("42", 0, "Sell", True)),
        ("Answer: $$42" + 300 * " " + "$$", ("$$42", 0, "", False)),
        ("The answer is 42" + 100 * " so" + ". Yes", ("42" + 99 * " so", 4, "so. Yes", False)),
        ("\\boxed{41} and \\boxed{42}", ("42", 15, "", True)),
        ("#### 42 apples\nmore", ("42 apples", 0, "\nmore", True)),
        ("a\n####\n42", ("42", 2, "", False)),
        ("The answer is 42. More", ("42", 4, "More", True)),
        ("Answer:\n$$42$$", ("$$42$$", 0, "", True)),
        ("the answer is reasonable. #### 42", ("42", 26, "", False)),
        ("#### 2. Sell them\n\\boxed{42}", ("42", 18, "", True)),
    ],
)
def test_an_answer_has_its_text_its_place_and_what_stands_behind_it(text, found):
    answer = final_answer(text)
    assert (answer and (answer.text, answer.start, answer.after, answer.complete)) == found
    assert answer is None or answer.reading.values == (42,)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a 7\nb 42", ("b 42", 42, 4, False)),
        ("a 7\nSo she has 42 apples.", ("So she has 42 apples", 42, 4, False)),
        ("So 6 * 7 = 42 apples are left. Good.", ("So 6 * 7 = 42 apples are left", 42, 0, True)),
        ("He has 42. She has 43 cats", ("She has 43 cats", 43, 10, False)),
        ("x\nHe has 42 apples\n", ("He has 42 apples", 42, 2, True)),
        ("# 42", ("42", 42, 0, False)),
        ("So 42 or 43", ("43", 43, 9, False)),
        ("7 and $42", ("$42", 42, 6, False)),
        ("7 then -42", ("-42", -42, 7, False)),
        ("2 points per answer = 48", ("48", 48, 22, False)),
        ("not 41 but 42. Yes", ("42", 42, 11, True)),
        ("no number", None),
        ("X is 42", ("X is 42", 42, 0, False)),
        ("He" + 45 * " so" + " 42", ("He" + 45 * " so" + " 42", 42, 0, False)),
        ("He" + 60 * " so" + " 42", (50 * "so " + "42", 42, 33, False)),
        ("42" + 45 * " so", ("42" + 45 * " so", 42, 0, False)),
        ("42" + 60 * " so", ("42" + 50 * " so", 42, 0, False)),
        ("42" + 45 * " so" + ". Yes", ("42" + 45 * " so", 42, 0, True)),
        ("42" + 60 * " so" + ". Yes", ("42" + 50 * " so", 42, 0, False)),
    ],
)
def test_without_a_mark_the_last_sentence_with_a_number_is_read(text, found):
    answer = final_answer(text, flexible=True)
    assert final_answer(text) is None
    assert (answer and (answer.text, *answer.reading.values, answer.start, answer.complete)) == found
    assert answer is None or answer.after == ""


def test_a_correction_counts_within_300_characters_of_an_answer():
    for answer in ("\\boxed{42}", "#### 42\n"):
        for behind, values in ((298, ()), (299, (42,))):
            after = " no, it is".ljust(behind + (answer[-1] == "}")) + "7"
            assert final_answer(answer + after).reading.values == values
    hedged = final_answer("#### 18 or 19")
    assert (hedged.text, hedged.reading.values) == ("18 or 19", ())


def test_a_number_in_words_ends_within_80_characters():
    for space, values in ((75, (7,)), (74, ())):
        assert read_statement("7 = seven" + space * " " + "k").values == values


def test_a_fraction_of_letters_keeps_its_brackets():
    found = [plain(text) for text in ("\\frac{x}{2}", "\\frac{3}{x}", "\\frac{}{2}", "\\frac{3}{}", "\\frac12")]
    assert found == ["((x)/(2))", "((3)/(x))", "(()/(2))", "((3)/())", "⟨1/2⟩"]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("6 * 7 = 42", True), ("So 6 * 7 = 42", True), ("5 = 5. Then 6 * 7 = 42", True), ("6 * 7 = 43", False),
        ("6 * 7 = 4", None), ("6 * 7 = 42.", None), ("1 * 1 = 1. 6 * 7 = 43", False), ("7 / 2 = 3", None),
        ("7 / 2 = 3.5", True), ("7 / 2 = 4", False), ("1 / 3 = 0.3", None), ("600 * 7 = 4,2", None),
        ("600 * 7 = 43", False), ("6 - 48 = -4", None), ("6 - 48 = -42", True), ("6 - 48 = -5", False),
        ("50% * 84 = 4", None), ("no calculation", None), ("=", None), ("6 * 7 = 42 = 42", None),
        ("600 * 7000 = 4,200", None), ("600 * 7000 = 4,300", False), ("50% * 84 = 43", None),
        ("He has 5", None), ("1=6*7=42", True), ("=6 * 7 = 42", True),
        ("99999999999999999*9 = 8999", None), ("99999999999999999*9 = 9", False), ("1 = 1\n" * 5002 + "6*7 = 42", True),
    ],
)  # fmt: skip
def test_a_calculation_is_judged_where_more_digits_cannot_change_it(text, verdict):
    assert judge_calculation(text) is verdict


@pytest.mark.parametrize(
    ("text", "quality"),
    [
        ("#### 42", 1.0), ("The answer is 42", 1.0), ("\\boxed{42}", 1.0), ("The answer is 42.\n#### 42", 1.0),
        ("\\boxed{42} \\boxed{42}", 0.5), ("The answer is 42. The ANSWER IS 42", 0.5), ("#### 41\n#### 42", 0.5),
        ("\\boxed{42} it is", 0.5), ("42", 0.0), ("no", 0.0),
    ],
)  # fmt: skip
def test_one_answer_stated_once_at_the_end_is_the_form(text, quality):
    assert format_quality(text) == quality


TRAYS = "12*4 = <<12*4=48>>48\n48+6 = <<48+6=54>>54\n#### 54"
HALVES = "Half is <<12/2=6>>6.\nHers is <<6+3=9>>9.\n6+9 = <<6+9=15>>15\n15*2 = <<15*2=30>>30\n#### 30"  # 6, 9: said
ONES = "1+1 = <<1+1=2>>2\n2*27 = <<2*27=54>>54\n#### 54"
UNREAD = "Half of it.\n#### 7"
OTHERS = " ".join(str(n) for n in range(101, 142))


@pytest.mark.parametrize(
    ("gold", "question", "text", "right", "share"),
    [
        (TRAYS, "5 pens", "5+4 = 9\n9*6 = 54\n#### 54", True, 1), (TRAYS, "5 pens", "9*6 = 54\n#### 54", True, 0.5),
        (TRAYS, "5 pens", "5+4 = 9\n9*6 = 54\n#### 54", False, 0.5), (TRAYS, "54 of 5", "54*1 = 54\n#### 54", True, 0),
        (TRAYS, "54 of 5", "54+0 = 54\n#### 54", True, 0), (TRAYS, "54", "54*1+0 = 54\n#### 54", True, 0),
        (TRAYS, "54", "54*2-54 = 54\n#### 54", True, 1), (TRAYS, "q", "54*2-54 = 54\n#### 54", False, 0.5),
        (ONES, "q", "1+1 = 2\n#### 3", False, 0.5), (ONES, "q", "1+2 = 2\n#### 3", False, 0),
        (HALVES, "q", "6 and 9\n#### 1", False, 0.5), (HALVES, "q", "6+9 = 15\n#### 1", False, 0.75),
        (HALVES, "q", "6 and 9 " + OTHERS + "\n#### 1", False, 2 / 5), (HALVES, "q", "10+20 = 30\n#### 1", False, 0.25),
        (HALVES, "q", "\n".join(f"1+{n} = {1 + n}" for n in range(100, 112)) + "\n6+9 = 15\n#### 1", False, 0.5),
        (HALVES, "15 pens", "15*2 = 30\n#### 30", True, 0.5), (HALVES, "15", "6\n15*2 = 30\n#### 30", True, 0.75),
        ("Half is <<12/2=6>>6.\n#### 7", "5", "5+2 = 7\n#### 7", True, 0), (UNREAD, "q", "#### 7", True, 1),
        (UNREAD, "q", "#### 8", False, 0), (UNREAD, "q", "1+1 = 3\n#### 7", True, 0.5),
        (UNREAD, "q", "1+1 = 3\n1+1 = 3\n2+2 = 5\n#### 7", True, 1 / 3),
    ],
)  # fmt: skip
def test_steps_are_counted_by_what_they_come_to(gold, question, text, right, share):
    assert process_quality(text, question, gold, right) == pytest.approx(0.2 + 0.8 * share)
    without = process_quality(text.rpartition("####")[0], question, gold, right)
    assert without == pytest.approx(0.2 * share) or OTHERS in text
