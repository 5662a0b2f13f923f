"""The rules' documentation: one command gives a rule's meaning from its id, and docs/rules.md is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from nsa_onnx.checker import RULES
from nsa_onnx.checker.documentation import explain, list_rules, markdown
from nsa_onnx.cli import main

ROOT = Path(__file__).parents[1]


def test_docs_rules_md_is_generated_from_the_rules():
    assert (ROOT / "docs/rules.md").read_text() == markdown(), "run python docs/generate_rules.py"


def test_the_page_has_a_section_and_a_row_for_every_rule_and_readable_models():
    page = markdown()
    assert re.findall(r"^## (NSA\d{3})$", page, re.M) == list(RULES)
    assert re.findall(r"^\| \[(NSA\d{3})\]\(#nsa\d{3}\)", page, re.M) == list(RULES)
    models = re.findall(r"^```text\n(.*?)\n```$", page, re.M | re.S)
    assert len(models) == sum(bool(text) for rule in RULES.values() for text in (rule.example, rule.accepted))
    for text in models:
        assert max(map(len, text.splitlines())) <= 120
        onnx.parser.parse_model(text)


def test_the_list_has_a_line_for_every_rule():
    lines = list_rules().splitlines()
    assert [line.split()[0] for line in lines] == list(RULES)
    assert all(
        rule.title in line and rule.severity.value in line for rule, line in zip(RULES.values(), lines, strict=True)
    )


@pytest.mark.parametrize("rule_id", RULES)
def test_one_command_explains_a_rule(capsys, rule_id):
    with pytest.raises(SystemExit) as caught:
        main(["check", "--explain", rule_id.lower()])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    rule = RULES[rule_id]
    assert out == explain(rule_id) + "\n"
    assert out.startswith(f"{rule_id}: {rule.title}\nseverity: {rule.severity.value}\n")
    assert rule.documentation in out
    assert rule.hint in " ".join(out.split())
    for model in (rule.example, rule.accepted):
        assert all(f"    {line}\n" in out for line in model.splitlines())


def test_list_rules_needs_no_model(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", "--list-rules"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == list_rules() + "\n"


def test_a_rule_that_is_not_there_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", "--explain", "NSA999"])
    assert caught.value.code == 2
    assert "there is no rule 'NSA999'" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_failure():
    command = f"{sys.executable} -m nsa_onnx.cli check --list-rules | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
