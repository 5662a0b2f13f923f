"""What a check found, in each format: valid by the format's schema, complete, and safe with hostile names."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from xml.etree import ElementTree

import nsa_models as models
import onnx
import pytest
import xmlschema
from jsonschema import Draft7Validator, ValidationError
from stored_schemas import stored_schema

from nsa_onnx.checker import RULES, Finding, NodeRun, Report, Severity, check
from nsa_onnx.checker.formats import FORMATS, Context, Unreadable, relative_path

CONTEXT = Context("1.2.3")
HOSTILE = [
    "a\n::error::forged",
    "::add-mask::x",
    "\x1b[31mred\x1b[0m\x07",
    "##[error]forged ##vso[task.complete]",
    "###[error]forged",
    "100% a:b,c\r\nd",
    "]]><evil a='\"'>&amp;",
    "nul\0 \uffff \u202e rtl \u2028 line",
    "é 漢 🙂",
    os.fsdecode(b"\xff\xed\xa0\x80"),
]


def finding(message="argument must be <= 4, got 5", severity=Severity.ERROR, node="nsa", rule="NSA010", **more):
    return Finding(rule, severity, message, node, "NsaCompress", "input", "graph", **more)


def report(*findings, model="models/m.onnx", nodes=("nsa",), runs=()):
    return Report(model, "cpu", tuple(nodes), tuple(findings), tuple(runs))


def render(name, *outcomes, **context):
    return FORMATS[name](outcomes, Context("1.2.3", **context))


WARNING = finding("odd", Severity.WARNING, node="other", rule="NSA021")
MANY = {
    "clean": [report()],
    "in memory": [report(finding(), model="")],
    "findings": [report(finding(hint="take 4"), finding("more", node=""), WARNING), report(model="b.onnx")],
    "unreadable": [report(finding()), Unreadable("x.onnx", "cpu", "x.onnx: no such file")],
    "no model": [],
    "run": [report(runs=[NodeRun("nsa", "NsaCompress", "graph", 1, "input [1]")])],
    "unknown rule": [report(finding(rule="NSA999"))],
    "hostile": [
        report(*(finding(name, node=name, hint=name) for name in HOSTILE), model=name, nodes=HOSTILE)
        for name in HOSTILE
    ],
    "hostile and unreadable": [Unreadable(name, "cpu", name) for name in HOSTILE],
}
each_outcome = pytest.mark.parametrize("outcomes", MANY.values(), ids=MANY)


# --------------------------------------------------------------------------------------------------
# Text


def test_text_says_rule_node_place_value_bound_and_hint():
    bad = models.infer([50], batch=1, x=(1, 64, 64, 16), w=(32, 64), cache=(1, 64, 16))
    found = check(bad)
    assert "error NSA010 NsaCompressInfer 'nsa': input: N must be <= 63, got 64" in found.to_text()
    line, hint, *_ = report(finding(hint="take 4")).to_text().splitlines()
    assert line == "error NSA010 NsaCompress 'nsa': argument must be <= 4, got 5"
    assert hint == "    hint: take 4"
    inside = Finding("NSA010", Severity.ERROR, "m", "nsa", "NsaCompress", "", "graph > then of 'if'")
    assert "NsaCompress 'nsa', in graph > then of 'if': m" in report(inside).to_text()


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (Finding("NSA001", Severity.ERROR, "m"), "error NSA001 m"),
        (Finding("NSA027", Severity.WARNING, "m", place="graph"), "warning NSA027 m"),
        (Finding("NSA045", Severity.WARNING, "m", "n"), "warning NSA045 node 'n': m"),
        (Finding("NSA010", Severity.ERROR, "m", "n", "Op", "x", "graph"), "error NSA010 Op 'n': m"),
        (
            Finding("NSA010", Severity.ERROR, "m", "n", "Op", "x", "function f.F"),
            "error NSA010 Op 'n', in function f.F: m",
        ),
    ],
)
def test_the_line_of_a_finding(found, line):
    assert report(found).to_text().splitlines()[:-1] == [line]
    assert report(replace(found, hint="h")).to_text().splitlines()[:-1] == [line, "    hint: h"]


def test_a_run_is_a_line_with_its_distance_or_the_reason_why_it_was_not_run():
    runs = [NodeRun("a", "Op", "graph", 0, "sizes"), NodeRun("b", "Op", "function f.F", None, "why")]
    assert report(runs=runs).to_text().splitlines()[:-1] == [
        "ran Op 'a': largest difference 0 ulp (sizes)",
        "not run Op 'b', in function f.F: why",
    ]


@pytest.mark.parametrize(
    ("findings", "fails_on_warning", "fails_on_error", "last"),
    [
        ([], False, False, "\x1b[32mok\x1b[0m"),
        ([WARNING], True, False, "\x1b[1;33m0 errors, 1 warning\x1b[0m"),
        ([finding()], True, True, "\x1b[1;31m1 error, 0 warnings\x1b[0m"),
        ([WARNING, WARNING, finding(), finding()], True, True, "\x1b[1;31m2 errors, 2 warnings\x1b[0m"),
    ],
)
def test_what_fails_and_the_last_line(findings, fails_on_warning, fails_on_error, last):
    made = report(*findings)
    assert (made.fails(), made.fails("warning"), made.fails("error")) == (*[fails_on_warning] * 2, fails_on_error)
    assert made.ok is not fails_on_warning
    assert made.to_text(color=True).splitlines()[-1] == f"models/m.onnx: {last} (1 NSA node checked)"
    assert made.summary(color=True) == f"models/m.onnx: {last} (1 NSA node checked)"
    assert "\x1b" not in made.summary() + made.to_text()


def test_lines_in_colour():
    first, hint, last = report(finding("m", hint="h"), model="").to_text(color=True).splitlines()
    assert first == "\x1b[1;31merror\x1b[0m NSA010 \x1b[1mNsaCompress 'nsa'\x1b[0m: m"
    assert hint == "\x1b[2m    hint: h\x1b[0m"
    assert last == "model: \x1b[1;31m1 error, 0 warnings\x1b[0m (1 NSA node checked)"


@each_outcome
def test_colour_adds_nothing_but_colour_and_only_where_it_is_wanted(outcomes):
    plain, colored = render("text", *outcomes), render("text", *outcomes, color=True)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain
    assert ("\x1b[1;31merror" in colored) == ("error NSA" in plain)
    for name in ("json", "sarif", "junit", "github"):
        assert "\x1b" not in render(name, *outcomes, color=True)


def test_text_of_several_models_ends_with_all_of_them():
    lines = render("text", *MANY["findings"], *MANY["unreadable"][1:]).splitlines()
    assert lines[0] == "models/m.onnx: 2 errors, 1 warning (1 NSA node checked)"
    assert lines[1].startswith("  error NSA010")
    assert lines[-3:] == [
        "b.onnx: ok (1 NSA node checked)",
        "x.onnx: no such file",
        "3 models: 1 ok, 2 errors, 1 warning, 1 could not be checked (2 NSA nodes checked)",
    ]
    assert "no such file" not in render("text", *MANY["unreadable"], told=True)


@pytest.mark.parametrize("name", ["text", "github", "junit"])
def test_names_neither_steer_a_terminal_nor_forge_lines_nor_command_a_runner(name):
    text = render(name, *MANY["hostile"], *MANY["hostile and unreadable"])
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "##" not in text
    commands = [line for line in text.splitlines() if line.lstrip().startswith("::")]
    assert len(commands) == (len(HOSTILE) ** 2 + len(HOSTILE)) * (name == "github")
    assert all(command.startswith("::error title=") for command in commands)


# --------------------------------------------------------------------------------------------------
# JSON


def test_json_has_what_passes_and_what_fails_and_runs_only_if_there_were_some():
    data = report(
        finding(), finding(), finding("of the model", node=""), WARNING, nodes=("nsa", "b", "other")
    ).to_dict()
    assert data["summary"] == {
        "ok": False,
        "errors": 3,
        "warnings": 1,
        "nodes": 3,
        "passing": ["b"],
        "failing": ["nsa", "other"],
    }
    assert [entry["nodes"] for entry in data["entries"]] == [["nsa"], ["nsa"], [], ["other"]]
    assert "runs" not in data
    assert report(runs=[NodeRun("a", "Op", "graph", 0, "s")]).to_dict()["runs"] == [
        {"node": "a", "op_type": "Op", "place": "graph", "ulps": 0, "note": "s"}
    ]


def test_json_of_one_named_model_is_the_reports_own():
    one = report(finding(hint="take 4"))
    assert json.loads(render("json", one, alone=True)) == one.to_dict()
    assert one.to_dict()["entries"][0]["hint"] == "take 4"
    unreadable = json.loads(render("json", MANY["unreadable"][1], alone=True))
    assert unreadable == {"model": "x.onnx", "target": "cpu", "error": "x.onnx: no such file"}


@each_outcome
def test_json_of_several_is_a_summary_and_their_reports(outcomes):
    data = json.loads(render("json", *outcomes))
    assert [entry["model"] for entry in data["reports"]] == [outcome.model for outcome in outcomes]
    assert data["summary"]["models"] == len(outcomes)
    assert data["summary"]["unreadable"] == sum(isinstance(outcome, Unreadable) for outcome in outcomes)
    assert data["summary"]["errors"] == sum(
        outcome.count(Severity.ERROR) for outcome in outcomes if isinstance(outcome, Report)
    )
    assert data["summary"]["ok"] is all(isinstance(outcome, Report) and outcome.ok for outcome in outcomes)


def test_runs_are_in_the_report():
    (entry,) = json.loads(render("json", *MANY["run"]))["reports"]
    assert entry["runs"] == [
        {"node": "nsa", "op_type": "NsaCompress", "place": "graph", "ulps": 1, "note": "input [1]"}
    ]
    assert "ran NsaCompress 'nsa': largest difference 1 ulp (input [1])" in render("text", *MANY["run"])


# --------------------------------------------------------------------------------------------------
# SARIF

SARIF = Draft7Validator(stored_schema("sarif-2.1.0.json"), format_checker=Draft7Validator.FORMAT_CHECKER)


def sarif(*outcomes, **context):
    return json.loads(render("sarif", *outcomes, **context))


@each_outcome
def test_sarif_is_valid(outcomes):
    SARIF.validate(sarif(*outcomes))


def test_the_sarif_schema_bites():
    for change in (
        lambda log: log.update(version="2.0.0"),
        lambda log: log["runs"][0].pop("tool"),
        lambda log: log["runs"][0]["results"][0].pop("message"),
        lambda log: log["runs"][0]["results"][0].update(level="fatal"),
        lambda log: log["runs"][0]["results"][0].update(ruleIndex=-2),
        lambda log: log["runs"][0]["results"][0]["locations"][0].update(uri="a"),
    ):
        log = sarif(report(finding()))
        change(log)
        with pytest.raises(ValidationError):
            SARIF.validate(log)


def test_sarif_has_every_rule_with_its_words_and_every_finding_with_its_rule():
    (run,) = sarif(*MANY["findings"])["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    for rule in rules:
        assert rule["shortDescription"]["text"] == RULES[rule["id"]].title
        assert rule["defaultConfiguration"]["level"] == RULES[rule["id"]].severity.value
        assert len(rule["help"]["text"]) > 20
    assert [(result["ruleId"], result["level"]) for result in run["results"]] == [
        ("NSA010", "error"),
        ("NSA010", "error"),
        ("NSA021", "warning"),
    ]
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])
    assert run["results"][0]["message"]["text"] == ("NsaCompress 'nsa': argument must be <= 4, got 5\nHint: take 4")
    (location,) = run["results"][0]["locations"]
    assert location["logicalLocations"][0]["fullyQualifiedName"] == "graph > nsa"
    assert run["tool"]["driver"]["version"] == "1.2.3"


def test_sarif_tells_of_models_that_could_not_be_checked():
    (run,) = sarif(*MANY["unreadable"])["runs"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    (notification,) = invocation["toolExecutionNotifications"]
    assert notification["message"]["text"] == "x.onnx: no such file"
    assert sarif(*MANY["clean"])["runs"][0]["invocations"] == [{"executionSuccessful": True}]


def uri(log):
    (result,) = log["runs"][0]["results"]
    return result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]


def test_sarif_paths_are_relative_to_the_checkout_and_escaped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uri(sarif(report(finding(), model="a b/m#1%:é.onnx"))) == "a%20b/m%231%25%3A%C3%A9.onnx"
    assert uri(sarif(report(finding(), model=str(tmp_path / "m.onnx")))) == "m.onnx"
    assert uri(sarif(report(finding(), model="../m.onnx"))) == f"file://{tmp_path.parent}/m.onnx"
    assert uri(sarif(report(finding(), model=os.fsdecode(b"\xff.onnx")))) == "%FF.onnx"
    assert relative_path("./a/../m.onnx") == "m.onnx"


def test_sarif_tells_alerts_apart_and_knows_them_again(tmp_path, monkeypatch):
    twice = report(finding(), finding("argument must be <= 4, got 6"), finding(node="b"), finding(rule="NSA011"))

    def marks():
        return [
            result["partialFingerprints"]["primaryLocationLineHash"] for result in sarif(twice)["runs"][0]["results"]
        ]

    assert len(set(marks())) == 4
    here = marks()
    monkeypatch.chdir(tmp_path)
    assert marks() == here


# --------------------------------------------------------------------------------------------------
# JUnit

# JUnit's XML has no official schema. This is what Jenkins' xunit plugin (junit-10.xsd, which no package carries) and
# pytest's own reports agree on, in our words, as far as we write it; the attributes that we do not write are left out.
JUNIT = xmlschema.XMLSchema("""
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:element name="testsuites">
    <xs:complexType>
      <xs:sequence><xs:element ref="testsuite" minOccurs="0" maxOccurs="unbounded"/></xs:sequence>
      <xs:attribute name="name" type="xs:string"/>
      <xs:attribute name="tests" type="xs:nonNegativeInteger"/>
      <xs:attribute name="failures" type="xs:nonNegativeInteger"/>
      <xs:attribute name="errors" type="xs:nonNegativeInteger"/>
    </xs:complexType>
  </xs:element>
  <xs:element name="testsuite">
    <xs:complexType>
      <xs:sequence><xs:element ref="testcase" minOccurs="0" maxOccurs="unbounded"/></xs:sequence>
      <xs:attribute name="name" type="xs:string" use="required"/>
      <xs:attribute name="tests" type="xs:nonNegativeInteger" use="required"/>
      <xs:attribute name="failures" type="xs:nonNegativeInteger" use="required"/>
      <xs:attribute name="errors" type="xs:nonNegativeInteger" use="required"/>
      <xs:attribute name="skipped" type="xs:nonNegativeInteger"/>
    </xs:complexType>
  </xs:element>
  <xs:element name="testcase">
    <xs:complexType>
      <xs:choice minOccurs="0" maxOccurs="unbounded">
        <xs:element name="failure" type="problem"/>
        <xs:element name="error" type="problem"/>
        <xs:element name="system-out" type="xs:string"/>
      </xs:choice>
      <xs:attribute name="name" type="xs:string" use="required"/>
      <xs:attribute name="classname" type="xs:string"/>
    </xs:complexType>
  </xs:element>
  <xs:complexType name="problem" mixed="true">
    <xs:attribute name="type" type="xs:string"/>
    <xs:attribute name="message" type="xs:string"/>
  </xs:complexType>
</xs:schema>
""")


@each_outcome
def test_junit_is_valid_and_its_sums_are_right(outcomes):
    text = render("junit", *outcomes)
    JUNIT.validate(text)
    root = ElementTree.fromstring(text)
    for counted in (root, *root):
        assert int(counted.get("tests")) == len(list(counted.iter("testcase")))
        assert int(counted.get("failures")) == len(list(counted.iter("failure")))
        assert int(counted.get("errors")) == len(list(counted.iter("error")))
    assert text.isascii()


def test_the_junit_schema_bites():
    text = render("junit", report(finding()))
    for wrong in (
        text.replace(' tests="2"', ' tests="two"'),
        text.replace("failure", "fault"),
        re.sub(r'<testcase name="[^"]*"', "<testcase", text),
    ):
        assert wrong != text
        with pytest.raises(xmlschema.XMLSchemaValidationError):
            JUNIT.validate(wrong)


def test_junit_has_a_case_per_node_and_fails_those_with_findings():
    suite, other = ElementTree.fromstring(render("junit", *MANY["findings"]))
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == ["model", "nsa", "other"]
    assert cases["nsa"].get("classname") == "models/m.onnx"
    assert cases["nsa"].find("failure").get("message") == "NSA010 argument must be <= 4, got 5"
    assert "hint: take 4" in cases["nsa"].find("failure").text
    assert [case.find("failure") for case in other] == [None, None]
    (case,) = ElementTree.fromstring(render("junit", *MANY["unreadable"]))[1]
    assert case.find("error").get("message") == "x.onnx: no such file"


def test_junit_fails_no_case_for_what_does_not_fail_the_model():
    text = render("junit", report(WARNING), fail_on=Severity.ERROR)
    assert "<failure" not in text
    assert "warning NSA021 NsaCompress 'other': odd" in text
    assert "<failure" in render("junit", report(WARNING))


def test_two_findings_of_a_node_are_one_failure_that_has_both():
    text = render("junit", report(finding(), finding("second")))
    (failure,) = ElementTree.fromstring(text).iter("failure")
    assert failure.get("message").endswith("(and 1 more)")
    assert "second" in failure.text


# --------------------------------------------------------------------------------------------------
# GitHub


def runners_reading(line):
    """As GitHub's runner reads a workflow command: its name, its properties, its message."""
    name, rest = line[2:].split(" ", 1)
    properties, message = rest.split("::", 1)

    def unescaped(value, pairs):
        for code, char in pairs:
            value = value.replace(code, char)
        return value

    data = [("%0D", "\r"), ("%0A", "\n"), ("%25", "%")]
    pairs = [pair.split("=", 1) for pair in properties.split(",")]
    found = {key: unescaped(value, [("%3A", ":"), ("%2C", ","), *data]) for key, value in pairs}
    return name, found, unescaped(message, data)


def test_github_reads_what_was_found():
    lines = render("github", *MANY["findings"], *MANY["unreadable"]).splitlines()
    assert [runners_reading(line) for line in lines[:3]] == [
        (
            "error",
            {"title": "NSA010 nsa", "file": "models/m.onnx"},
            "NsaCompress 'nsa': argument must be <= 4, got 5\nhint: take 4",
        ),
        ("error", {"title": "NSA010", "file": "models/m.onnx"}, "more"),
        ("warning", {"title": "NSA021 other", "file": "models/m.onnx"}, "NsaCompress 'other': odd"),
    ]
    assert runners_reading(lines[4])[1:] == (
        {"title": "model cannot be checked", "file": "x.onnx"},
        "x.onnx: no such file",
    )
    assert lines[5] == "4 models: 1 ok, 3 errors, 1 warning, 1 could not be checked (3 NSA nodes checked)"


def test_github_reads_names_with_its_own_signs_as_they_are():
    name = "100%0A a:b,c=d"
    (line, _) = render("github", report(finding(name, node=name), model="a,b:%.onnx")).splitlines()
    assert runners_reading(line) == (
        "error",
        {"title": f"NSA010 {name}", "file": "a,b:%.onnx"},
        f"NsaCompress {name!r}: {name}",
    )


def test_a_models_names_reach_every_format_unharmed():
    """From a file, not made up: what protobuf lets through."""
    made = models.compress([50, 40])
    made.graph.node[0].name = "é ]]> 100% \x1b \n::error::x"
    found = check(onnx.load_from_string(made.SerializeToString()))
    assert not found.ok
    JUNIT.validate(render("junit", found))
    SARIF.validate(sarif(found))
    assert json.loads(render("json", found, alone=True))["entries"][0]["nodes"] == [made.graph.node[0].name]
    assert len(render("github", found).splitlines()) == len(found.findings) + 1
