"""`nsa-onnx explain` without a browser: the page's contents, its scale, its bounded size, and hostile models."""

from __future__ import annotations

import colorsys
import re
import stat
from pathlib import Path

import explain_models
import nsa_models as models
import numpy as np
import onnx
import pytest
from explain_page import Page, of, part, section_of
from onnx import TensorProto, helper

from nsa_onnx.analysis import analyse
from nsa_onnx.checker import Finding, Report, Severity, UnreadableModelError
from nsa_onnx.cli import main
from nsa_onnx.explain import explain, section
from nsa_onnx.explain.drawing import MAX_ROWS
from nsa_onnx.explain.facts import MAX_SUBJECTS, subjects
from nsa_onnx.explain.markup import brief
from nsa_onnx.explain.parts import MAX_SECTIONS
from nsa_onnx.explain.section import MAX_PICTURE_BYTES
from nsa_onnx.explain.segments import MAX_SEGMENTS, MAX_WINDOWS
from nsa_onnx.fuse import candidates
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import Operator, dim_names
from nsa_onnx.operators.pictures import Pages
from nsa_onnx.operators.windows import triggers, window_count

MEGABYTE = 2**20


@pytest.mark.parametrize(("block", "stride"), [(32, 16), (32, 32), (128, 16), (48, 32)])
def test_segments_windows_and_tails_are_drawn_where_they_are(block, stride):
    lengths = [block + 5 * stride + 7, block - 1, block, 1, block + 2 * stride]
    page = Page(explain(explain_models.ragged(lengths, block, stride)))
    for index, length in enumerate(lengths):
        ((tokens, boxes),) = page.drawings(f"segment {index}:")
        windows = window_count(length, block, stride)
        covered = block + (windows - 1) * stride if windows else 0
        assert tokens == max(lengths)
        assert sorted(of(boxes, "window0", "window1")) == [(k * stride, block) for k in range(windows)]
        assert of(boxes, "segment0") == ([(0, covered)] if windows else [])
        dropped = [(covered, length - covered)] if length > covered else []
        assert of(boxes, "tail", "short") == dropped
        assert len(of(boxes, "short")) == (length < block)


def test_the_batch_before_and_after_is_on_one_scale():
    lengths = [100, 0, 40, 20]
    page = Page(explain(explain_models.ragged(lengths)))
    ((tokens, boxes),) = page.drawings("160 tokens in 4 segments become 6 rows; 32 tokens dropped")
    assert tokens == 160
    assert of(boxes, "segment0", "segment1") == [(0, 96), (100, 32)]
    assert of(boxes, "tail", "short") == [(96, 4), (132, 8), (140, 20)]
    assert of(boxes, "row0", "row1") == [(0, 5), (5, 1)]


def test_shapes_bytes_and_ratio_are_told():
    page = Page(explain(explain_models.ragged([100, 60])))
    assert "float16 [160, 8, 128]" in page.text
    assert "float16 [7, 8, 128]" in page.text  # 5 + 2 windows
    assert "160 tokens, 320.0 KiB, 16 dropped" in page.text
    assert "7 rows, 14.0 KiB" in page.text
    assert "22.9 : 1, 95.6 % saved" in page.text


def test_dims_that_the_model_does_not_name_have_the_operator_s_names():
    unnamed = models.compress(x=(None, 4, 16), y=(None, 4, 16))
    types = [text for _, _, text in Page(explain(unnamed)).named("td", "type")]
    assert types == ["float16 [T, 4, 16]", "float16 [T', 4, 16]"]
    named = models.compress(x=("tokens", 4, 16), y=("kept", 4, 16))
    page = Page(explain(named))
    assert "float16 [tokens, 4, 16]" in page.text
    decode = models.infer(x=(None, 64, 4, 16), cache=(None, 4, 16))
    types = [text for _, _, text in Page(explain(decode)).named("td", "type")]
    assert types == ["float16 [block_num, 64, 4, 16]", "float16 [slots, 4, 16]"]


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_what_an_operator_says_of_a_tensor_begins_with_its_dims(operator):
    """The page and docs/operators.md take them from there."""
    for one in (*operator.inputs, *operator.outputs):
        names = dim_names(one)
        assert one.text.startswith(f"`[{', '.join(names)}]`")
        assert all(name.replace("'", "").isidentifier() for name in names), names
    for output in operator.outputs:
        assert len(dim_names(output)) == len(output.dims)


def test_made_up_lengths_are_called_an_example_and_can_be_given():
    unknown = models.compress()
    assert "Example lengths" in explain(unknown)
    given = explain(unknown, lengths=[64, 33])
    assert "Lengths as given" in given
    assert "64 tokens, 3 windows" in given
    assert "Example lengths" not in explain(explain_models.ragged([64, 33]))
    for wrong in ([0], [5, -1], [2**50]):
        with pytest.raises(ValueError, match=rf"lengths\[{len(wrong) - 1}\] must be in"):
            explain(unknown, lengths=wrong)


def test_a_decode_step_shows_who_writes_what():
    page = Page(explain(explain_models.decode()))
    assert "3 of 6 sequences" in page.text
    assert "31 tokens: writes nothing, the next window is full in 1 token" in page.text
    assert "2,000 tokens: tokens 1,968 to 1,999 go to slot 28" in page.text
    ((_, boxes),) = page.drawings("sequence 3: 160 tokens")
    assert of(boxes, "tokens") == [(0, 64), (64, 64), (128, 32)]
    assert of(boxes, "window0") == [(128, 32)]
    ((_, boxes),) = page.drawings("sequence 2: 100 tokens")
    assert of(boxes, "next") == [(80, 32)]
    table = {t.name: t for t in explain_models.decode().graph.initializer}["table"].int32_data
    shown = [text for _, attributes, text in page.named("text", "held")]
    assert shown[:2] == [f"#{table[0]}", f"#{table[40]}"]


@pytest.mark.parametrize(("block", "stride"), [(32, 16), (16, 16), (112, 48)])
def test_the_next_window_is_the_next_length_that_triggers(block, stride):
    step = Pages(block, stride, np.array([0]), None, "", 64, None, None, None)
    for length in range(400):
        wanted = next(n for n in range(length, 1000) if triggers(n, block, stride))
        assert step.next_write(length) == wanted


def test_findings_are_at_their_node_with_rule_hint_and_mark():
    made = explain_models.many(3)
    del made.graph.node[1].attribute[:]
    made.graph.node[1].attribute.extend(models.node(compress_stride=24).attribute)
    html = explain(made)
    section = section_of(html, 1)
    assert "NSA011" in section
    assert "compress_stride must be a multiple of 16, got 24" in section
    assert '<dd class="wrong">24</dd>' in section
    assert "NSA011" not in html.replace(section, "").split("Node by node")[1]


def test_wrong_lengths_are_marked_and_not_drawn():
    page = Page(explain(models.compress([50, 40, 130])))
    assert [text for _, _, text in page.named("li", "wrong")] == ["40"]
    assert not page.drawings("segment")
    html = explain(models.compress([50, 100], x=(120, 4, 16)))
    assert 'class="wrong"' in html  # tokens of input that are in no segment
    assert "20 tokens in no segment" in html


def test_an_operator_without_a_picture_has_all_the_rest(monkeypatch):
    monkeypatch.setattr(type(OPERATORS["NsaCompress"]), "picture", Operator.picture)
    page = Page(explain(explain_models.ragged([100, 60])))
    assert "NsaCompress has no picture." in page.text
    assert "float16 [160, 8, 128]" in page.text
    assert not page.drawings("segment")


def test_findings_about_no_node_are_told_apart():
    html = explain(models.model([], [], [], imports=()))
    assert "Findings elsewhere in the model" in html
    assert "NSA001" in html
    assert "nothing to draw" in html


def test_a_model_without_nodes_is_told_what_fuse_would_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("models") / "my model.onnx"
    path.parent.mkdir()
    onnx.save(explain_models.decomposed(), path)
    page = Page(explain(path))
    assert "1 value in it is computed in standard operators" in page.text
    assert page.named("p", "command")
    assert "nsa-onnx fuse 'models/my model.onnx' -o fused.onnx" in page.text
    shown = [text for _, attributes, text in page.elements if "data-label" in attributes]
    assert shown == ["NsaCompress", "16 / 16 tokens", "1 segment", "windows times weight, summed"]
    (fusable,) = candidates(path)
    assert fusable.segments == "1 segment"


def test_what_fuse_leaves_is_told_with_the_reason():
    made = explain_models.almost()
    (left,) = candidates(made)
    page = Page(explain(made))
    assert "1 value left as is, and why" in page.text
    assert left.reason in page.text
    assert not page.named("p", "command")


def test_what_needs_an_option_is_told_with_the_option():
    made = explain_models.decomposed()
    for node in [node for node in made.graph.node if node.op_type == "Cast"]:  # sums in float16
        node.attribute[0].i = TensorProto.FLOAT16
    page = Page(explain(made))
    assert "nsa-onnx fuse model.onnx -o fused.onnx --allow-rounding" in page.text
    (found,) = analyse(made).candidates(allow_rounding=True)
    assert f"needs --allow-rounding: {found.inexact}" in page.text


def test_a_model_that_has_nothing_to_fuse_is_told_so():
    page = Page(explain(explain_models.without()))
    assert "nsa-onnx fuse would put none in" in page.text
    assert not page.named("p", "command")
    assert "left as is" not in page.text


def test_a_model_with_nodes_is_not_told_of_fuse():
    assert "nsa-onnx fuse" not in explain(models.compress())


def nested():
    then = helper.make_graph(
        [models.node(inputs=("h", "w", "seq"))], "then", [], [models.value("y", np.float16, ("R", 4, 16))]
    )
    other = helper.make_graph(
        [models.node(inputs=("h", "w", "seq"), outputs=("z",)), helper.make_node("Neg", ["z"], ["y"], name="neg")],
        "else",
        [],
        [models.value("y", np.float16, ("R", 4, 16))],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Neg", ["r"], ["h"], name="minus"),
        helper.make_node("If", ["flag"], ["out"], name="choose", then_branch=then, else_branch=other),
        helper.make_node("Step", ["h", "w", "seq"], ["f"], domain="local"),
        models.node(inputs=("h", "w", "seq"), outputs=("g",)),
        models.node(inputs=("g", "w", "seq"), outputs=("gg",)),
    ]
    body = models.node(inputs=("a", "b", "c"), outputs=("d",))
    body.attribute[0].ClearField("i")
    body.attribute[0].ref_attr_name = "block"
    function = helper.make_function(
        "local", "Step", ["a", "b", "c"], ["d"], [body], [helper.make_opsetid("nsa_onnx", 1)], ["block"]
    )
    inputs = [models.value("x", np.float16, ("T", 4, 16)), models.value("w", np.float16, (32, 4))]
    inputs += [models.value("seq", TensorProto.INT64, ["B"]), models.value("flag", TensorProto.BOOL, [])]
    outputs = [models.value(name, np.float16, ("R", 4, 16)) for name in ("out", "f", "g", "gg")]
    return models.model(nodes, inputs, outputs, functions=[function], imports=(("nsa_onnx", 1), ("local", 1)))


def test_neighbours_and_places_are_told():
    html = explain(nested())
    page = Page(html)
    assert "graph \u203a then of 'choose'" in page.text
    assert "function local.Step" in page.text
    assert "called in 1 place" in page.text
    assert "Attributes are set by the function's caller" in page.text
    first, second = section_of(html, 0), section_of(html, 1)
    assert '<span class="op">Neg</span> <code>minus</code><span class="quiet"> ← Relu</span>' in first
    assert "output of the graph" in first
    assert '<a href="#node-1">NsaCompress</a>' in first  # its consumer
    assert '<a href="#node-0">NsaCompress</a>' in second  # its producer
    assert "of graph" in section_of(html, 2)  # a value of the graph around
    assert "<code>neg</code>" in html


def test_the_page_stays_small_whatever_the_model_has():
    lengths = np.random.default_rng(0).integers(1, 100, 100_000)
    html = explain(explain_models.ragged(lengths))
    assert len(html) < MEGABYTE / 4
    assert "100,000 segments are too many to draw one by one" in html
    assert f"of {len(lengths):,} segments" in html
    html = explain(explain_models.ragged([2 * MEGABYTE + 7], 128, 16))
    assert len(html) < MEGABYTE / 4
    assert "too many to draw apart" in html
    html = explain(explain_models.many(MAX_SUBJECTS + 5))
    assert len(html) < 2 * MAX_PICTURE_BYTES
    assert "5 more nodes are not listed" in html
    assert f"The other {MAX_SUBJECTS + 5 - MAX_SECTIONS} nodes are left out" in html
    assert f'id="node-{MAX_SECTIONS - 1}"' in html
    assert f'id="node-{MAX_SECTIONS}"' not in html


def test_summed_up_columns_show_the_shares_of_all_segments():
    page = Page(explain(explain_models.ragged([40] * 5 * MAX_SEGMENTS)))  # 32 of 40 tokens are in a window
    ((_, boxes),) = page.drawings("40,000 tokens in 1,000 segments")
    assert len(of(boxes, "segment0", "segment1")) == 100
    rects = [a for _, a, _ in page.named("rect") if a.get("class") in ("segment0", "segment1") and a["width"] == "1%"]
    assert [float(a["height"]) for a in rects] == pytest.approx([22 * 0.8] * 100, abs=0.3)


def test_rows_and_windows_just_inside_the_bounds_are_all_drawn():
    page = Page(explain(explain_models.ragged([32] * MAX_ROWS)))
    assert len(page.drawings("segment ")) == MAX_ROWS
    for windows, drawn in ((MAX_WINDOWS, MAX_WINDOWS), (MAX_WINDOWS + 1, 0)):
        page = Page(explain(explain_models.ragged([16 + 16 * windows])))
        assert len(of(page.drawings("segment 0:")[0][1], "window0", "window1")) == drawn


def colours():
    """The page's colours by name, of the light and of the dark scheme, as (red, green, blue) from 0 to 1."""
    light, dark = Page(explain(models.compress())).named("style")[0][2].split("prefers-color-scheme")[:2]
    pattern = r"--([\w-]+): #(\w\w)(\w\w)(\w\w)"
    return [
        {name: tuple(int(part, 16) / 255 for part in parts) for name, *parts in re.findall(pattern, scheme)}
        for scheme in (light, dark)
    ]


def test_text_in_pictures_stands_out_from_its_ground():
    """At least 4.5 : 1, as WCAG computes it; in pictures a browser cannot tell the ground."""

    def luminance(colour):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in colours():
        pairs = [("inside", "window0"), ("inside", "window1"), ("ink", "segment0"), ("ink", "page"), ("quiet", "card")]
        for text, ground in pairs:
            darker, lighter = sorted((luminance(scheme[text]), luminance(scheme[ground])))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


def test_amber_is_for_warnings_and_nothing_else():
    """Its hues, in both colour schemes; what only informs has none of them."""
    style = Page(explain(models.compress())).named("style")[0][2]
    for scheme in colours():
        hues = {name: colorsys.rgb_to_hls(*colour) for name, colour in scheme.items()}
        amber = {name for name, (hue, _, saturation) in hues.items() if 20 <= 360 * hue <= 60 and saturation > 0.2}
        assert amber == {"warning", "warning-ground"}
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style)
    users = [selector.strip() for selector, body in rules if "var(--warning" in body]
    assert users
    assert all(selector.endswith(".warning") for selector in users), users


def test_the_same_picture_is_folded_and_linked():
    html = explain(explain_models.many(3))
    assert html.count("The same picture as layer 0") == 2


def test_pictures_beyond_the_page_s_share_are_left_out(monkeypatch):
    monkeypatch.setattr(section, "MAX_PICTURE_BYTES", 5_000)
    made = explain_models.many(4)
    for index in (1, 2):  # pictures of their own
        made.graph.node[index].input[2] = f"seq{index}"
        made.graph.initializer.append(models.lengths([30 * index, 100], f"seq{index}"))
    html = explain(made)
    assert "Not drawn, to keep the page small." in html
    assert 'The same picture as <a href="#node-0">layer 0</a>' in html
    assert len(html) < len(explain(explain_models.many(4))) + 5_000


def test_a_finding_without_a_place_is_at_the_only_node_of_its_name():
    made = explain_models.many(2)
    made.graph.node[1].name = "layer 0"
    findings = [
        Finding("NSA011", Severity.ERROR, "both", node="layer 0"),
        Finding("NSA011", Severity.ERROR, "none", "x"),
    ]
    made_alone = explain_models.many(1)
    for model, wanted, elsewhere in ((made, [0, 0], 2), (made_alone, [1], 1)):
        found, others = subjects(analyse(model), Report("", "cpu", ("layer 0",), tuple(findings)), None)
        assert [len(subject.findings) for subject in found] == wanted
        assert len(others) == elsewhere


def test_nodes_with_the_same_lengths_share_them():
    model = analyse(explain_models.many(3))
    found, _ = subjects(model, Report("", "cpu", ()), None)
    assert len({id(subject.picture) for subject in found}) == 1


ALLOWED_TEXT = """
html head meta link title style body a header main footer section p h1 h2 h3 h4 dl div dt dd table thead tbody tr th td
ul ol li details summary figure figcaption span b small code svg defs pattern rect line text
"""
ALLOWED = set(ALLOWED_TEXT.split())


def test_nothing_from_a_model_becomes_markup():
    html = explain(explain_models.hostile())
    page = Page(html)
    assert {element[0] for element in page.elements} <= ALLOWED
    names = {name for _, attributes, _ in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on") or name == "style"}
    assert {a["href"][0] for _, a, _ in page.elements if "href" in a and a["href"] != "data:,"} == {"#"}
    for attack in explain_models.ATTACKS[:6]:
        assert attack in page.text
    assert not any(char in html for char in "\u202e\x00\x1b")
    assert r"\u202e\x00\x1b" in html


@pytest.mark.parametrize("attack", explain_models.ATTACKS)
def test_nothing_that_fuse_would_find_becomes_markup(attack, tmp_path):
    for made in (explain_models.decomposed(), explain_models.almost()):
        made.graph.node[-1].name = f"made by {attack}"
        made.graph.node[-1].output[0] = made.graph.output[0].name = attack
        path = tmp_path / f"{attack.replace('/', '').replace(chr(0), '')}.onnx"
        onnx.save(made, path)
        html = explain(path)
        assert {element[0] for element in Page(html).elements} <= ALLOWED
        told = Page(part(html, "fuse"))
        assert told.named("code")[-1][2] == brief(attack)
        assert told.named("small")[-1][2] == f" made by {brief(f'made by {attack}')}"


def test_the_policy_allows_nothing_but_the_page_s_own_style():
    page = Page(explain(models.compress()))
    (policy,) = [a["content"] for _, a, _ in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not page.named("script")


def test_the_command_writes_the_page(capsys, tmp_path):
    source, target = tmp_path / "m.onnx", tmp_path / "out.html"
    onnx.save(explain_models.many(1), source)
    target.write_text("old")
    target.chmod(0o640)
    assert main(["explain", str(source), "--html", str(target), "--lengths", "40,100"]) == 0
    assert capsys.readouterr() == (f"wrote {target}: 1 NSA node of {source}\n", "")
    assert target.read_text("utf-8") == explain(source, lengths=[40, 100])
    assert "<h1>m.onnx</h1>" in target.read_text("utf-8")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_what_cannot_be_read_or_written_exits_2_and_leaves_the_old_page(capsys, tmp_path):
    broken, target, good = tmp_path / "broken.onnx", tmp_path / "out.html", tmp_path / "good.onnx"
    broken.write_bytes(b"no model")
    onnx.save(models.compress(), good)
    target.write_text("old")
    wrong = ((broken, target), (tmp_path / "missing", target), (tmp_path, target), (good, tmp_path / "no" / "out.html"))
    for source, output in wrong:
        assert main(["explain", str(source), "--html", str(output)]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
    assert target.read_text() == "old"
    for lengths in ("0", "a", "", "1,,2", "1" * 30, "-5"):
        with pytest.raises(SystemExit) as caught:
            main(["explain", str(good), "--html", str(target), f"--lengths={lengths}"])
        assert caught.value.code == 2


def test_mutated_models_give_a_page_or_a_clean_error(tmp_path):
    generator = np.random.default_rng(7)
    seeds = [nested(), explain_models.decode(), explain_models.hostile(), explain_models.ragged([40, 20])]
    path = tmp_path / "mutated.onnx"
    pages = 0
    for round_ in range(160):
        data = bytearray(seeds[round_ % len(seeds)].SerializeToString())
        for _ in range(generator.integers(1, 6)):
            data[generator.integers(len(data))] = generator.integers(256)
        path.write_bytes(data[: generator.integers(1, len(data) + 1)] if round_ % 8 == 0 else data)
        try:
            html = explain(path)
        except UnreadableModelError:
            continue
        assert {element[0] for element in Page(html).elements} <= ALLOWED
        pages += 1
    assert pages > 20, "mutations must not all be unreadable"


ABSURD = (0, -1, 1, 2**31, 2**63 - 1, -(2**63))


@pytest.mark.parametrize("value", ABSURD)
def test_absurd_numbers_give_a_page(value):
    for name in ("compress_block_size", "compress_stride"):
        assert "<h1>" in explain(models.compress([40, 100], **{name: value}))
        assert "<h1>" in explain(models.infer([40, 100], batch=2, **{name: value}))
    assert "<h1>" in explain(models.infer([40, 100], batch=2, page_block_size=value))
    assert "<h1>" in explain(models.infer([value, 100], batch=2))
    assert "<h1>" in explain(models.compress([40, value], x=(abs(value) % 2**63, 4, 16)))
    dims = (max(0, value),) * 3
    assert "<h1>" in explain(models.compress(x=dims, w=(32, max(0, value)), y=dims))
