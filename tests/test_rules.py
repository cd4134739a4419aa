"""The grammar of a gate's rules: what they mean, and where a fault is."""

from pathlib import Path

import pytest

from diffprobe.errors import UserError
from diffprobe.runs.rules import EXAMPLE, Line, parse_rule, read_rules

CLIP = "scs:clip:openai/clip-vit-base-patch32"


@pytest.mark.parametrize(
    ("text", "name", "lower", "upper", "strict"),
    [
        (EXAMPLE, "drift.k", None, (1.05, 0), False),
        ("drift.k<=baseline*1.05", "drift.k", None, (1.05, 0), False),
        ("drift.k ≤ 1.05 × baseline", "drift.k", None, (1.05, 0), False),
        ("drift.k <= 105% * baseline", "drift.k", None, (1.05, 0), False),
        ("drift.k <= baseline + 5%", "drift.k", None, (1.05, 0), False),
        ("drift.k <= 5% + baseline", "drift.k", None, (1.05, 0), False),
        ("drift.k <= 21 * baseline / 20", "drift.k", None, (1.05, 0), False),
        ("drift.k <= baseline", "drift.k", None, (1, 0), False),
        ("drift.psnr >= baseline - 0.5", "drift.psnr", (1, -0.5), None, False),
        ("drift.psnr > 0.9*baseline - 2", "drift.psnr", (0.9, -2), None, True),
        ("drift.psnr >= 2*3 + 0.5*baseline", "drift.psnr", (0.5, 6), None, False),
        ("drift.psnr>=-1+baseline", "drift.psnr", (1, -1), None, False),
        ("drift.psnr >= baseline + -0.5", "drift.psnr", (1, -0.5), None, False),
        ("drift.psnr >= - -2", "drift.psnr", (0, 2), None, False),
        ("drift.mse < 1e-2", "drift.mse", None, (0, 0.01), True),
        ("drift.mse <= .5", "drift.mse", None, (0, 0.5), False),
        ("drift.flagged <= 3.", "drift.flagged", None, (0, 3), False),
        (f"consistency.{CLIP} within 2 of baseline", f"consistency.{CLIP}", (1, -2), (1, 2), False),
        ("consistency.scs:embedded within 2 of baseline + 1", "consistency.scs:embedded", (1, -1), (1, 3), False),
        ("drift.k within 5% of baseline", "drift.k", (0.95, 0), (1.05, 0), False),
        ("drift.psnr within 10% of 30", "drift.psnr", (0, 27), (0, 33), False),
        ("drift.k-2 >= 0", "drift.k-2", (0, 0), None, False),
        ('consistency."scs:clip:/my models/clip" >= 0', "consistency.scs:clip:/my models/clip", (0, 0), None, False),
    ],
)
def test_a_rule_is_a_quantity_and_its_bounds(
    text: str, name: str, lower: tuple[float, float] | None, upper: tuple[float, float] | None, strict: bool
) -> None:
    rule = parse_rule(text)
    assert (rule.name, rule.strict, rule.text) == (name, strict, text)
    for found, expected in ((rule.lower, lower), (rule.upper, upper)):
        assert found == (None if expected is None else pytest.approx(expected))
    assert rule.relative == ("baseline" in text)


@pytest.mark.parametrize(
    ("braces", "facets"),
    [
        ("{strength=0.4}", {"strength": "0.4"}),
        ("{ strength = 0.4 , prompt_set=null }", {"strength": "0.4", "prompt_set": "null"}),
        ("{prompt=a dog's red ball}", {"prompt": "a dog's red ball"}),
        ('{prompt="a ball, red", of=edits}', {"prompt": "a ball, red", "of": "edits"}),
        ("{prompt='say \"x\" {y}'}", {"prompt": 'say "x" {y}'}),
        ("{flag=no embedding by clip:a/b}", {"flag": "no embedding by clip:a/b"}),
        ("", {}),
    ],
)
def test_facets_are_names_and_values(braces: str, facets: dict[str, str]) -> None:
    rule = parse_rule(f"drift.mse{braces} <= 1")
    assert rule.facets == facets
    assert rule.quantity == "mse"


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("", "its end", "a probe's name"),
        ("drift", "its end", "a dot and a quantity"),
        ("drift k <= 1", "character 7 ('k <= 1')", "a dot and a quantity"),
        ("drift. <= 1", "character 8", "a quantity"),
        ("drift.k", "its end", "<=, >=, <, > or within"),
        ("drift.k =< 3", "character 9 ('=< 3')", "<=, >=, <, > or within"),
        ("drift.k == 3", "character 9", "<=, >=, <, > or within"),
        ("drift.k*2 <= 3", "character 8 ('*2 <= 3')", "<=, >=, <, > or within"),
        ("drift.k <=", "its end", "a number or baseline"),
        ("drift.k <= bseline", "character 12 ('bseline')", "a number or baseline"),
        ("drift.k <= baselines", "character 12", "a number or baseline"),
        ("drift.k <= 1.05 baseline", "character 17 ('baseline')", "+, -, *, / or the end"),
        ("drift.k <= 1 <= 2", "character 14", "+, -, *, / or the end"),
        ("drift.k <= baseline*baseline", "character 21", "a number"),
        ("drift.k <= 1/baseline", "character 14", "a number"),
        ("drift.k <= baseline/0", "its end", "nothing can be divided by 0"),
        ("drift.k <= nan", "character 12", "a number or baseline"),
        ("drift.k <= 1e999", "its end", "too large"),
        ("drift.codec_share <= 50%", "its end", "a percentage is one of the baseline: write 0.05 for 5 %"),
        ("drift.k within 0 of baseline", "character 18", "the margin before it must be above 0"),
        ("drift.k within baseline", "character 16", "the margin, a number"),
        ("drift.k within 2 baseline", "character 18", "'of baseline'"),
        ("drift.k{} <= 1", "character 9", "a facet's name"),
        ("drift.k{strength} <= 1", "character 17", "= and the facet's value"),
        ("drift.k{strength=} <= 1", "character 18", "the facet's value"),
        ("drift.k{strength=0.4 <= 1", "its end", "a comma or }"),
        ("drift.k{of=a, of=b} <= 1", "character 17", "the facet of comes twice"),
    ],
)
def test_a_fault_is_told_in_one_line_with_its_place_and_an_example(text: str, place: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rule(text)
    message = str(caught.value)
    assert message.startswith(f"the rule '{text}' cannot be read at {place}")
    assert told in message
    assert message.endswith(f"an example is '{EXAMPLE}'")
    assert caught.value.exit_code == 2


def test_line_breaks_are_blanks() -> None:
    assert parse_rule("drift.k\n  <=\t1").text == "drift.k <= 1"


def test_a_line_is_evaluated_at_the_baseline() -> None:
    assert Line(0.9, -2).at(10) == pytest.approx(7)


def test_rules_come_from_a_file_a_line_each_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "rules.txt"
    path.write_text(f"\ufeff# what a release keeps\n\n  {EXAMPLE}  # the kernel\ndrift.psnr >= 20\n   # drift.mse < 1\n", encoding="utf-8")
    assert read_rules(path) == [EXAMPLE, "drift.psnr >= 20"]


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot read rules from"), (b"# none\n", "holds no rule"), (b"\xff\xfe", "cannot read")]
)
def test_a_file_without_rules_is_one_line(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "rules.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        read_rules(path)
    assert "\n" not in str(caught.value)
