"""The page of `nsa-onnx explain`: nodes of a layer stand together, alike ones are closed and told once."""

from __future__ import annotations

import explain_models
import nsa_models as models
import numpy as np
import pytest
from explain_page import Page, part

from nsa_onnx.analysis import analyse
from nsa_onnx.checker import Report
from nsa_onnx.explain import explain
from nsa_onnx.explain.facts import subjects
from nsa_onnx.explain.layers import kind, layer_name


def cards(html):
    """Per layer's name, fold and node of the part "Node by node": (element, own text, whether it is open)."""
    elements = Page(part(html, "nodes")).elements
    shown = []
    for index, (tag, attributes, text) in enumerate(elements):
        style = attributes.get("class")
        if tag == "details" and style in ("node", "alike"):
            summary, heading = elements[index + 1 : index + 3]
            shown.append((style, summary[2] or heading[2], "open" in attributes))
        elif tag == "h3" and elements[index - 1][0] != "summary":
            shown.append(("layer", text, True))
    return shown


def test_nodes_of_a_layer_are_together_and_alike_ones_closed():
    assert cards(explain(explain_models.layered(3))) == [
        ("layer", "decoder.layers.0", True),
        ("node", "node_nsa_compress_0", True),
        ("node", "node_nsa_compress_1", False),
        ("alike", "2 more layers like this", False),
        ("layer", "decoder.layers.1", True),
        ("node", "node_nsa_compress_2", False),
        ("node", "node_nsa_compress_3", False),
        ("layer", "decoder.layers.2", True),
        ("node", "node_nsa_compress_4", False),
        ("node", "node_nsa_compress_5", False),
    ]
    assert "#1 of 6 nodes in graph, like node_nsa_compress_0" in explain(explain_models.layered(3))
    assert cards(explain(explain_models.many(8)))[:3] == [
        ("node", "layer 0", True),
        ("alike", "7 more like this", False),
        ("node", "layer 1", False),
    ]


def test_a_node_that_differs_is_open_and_in_no_fold():
    made = explain_models.many(5)
    made.graph.node[2].attribute[1].i = 32
    made.graph.node[3].attribute[1].i = 24  # an error
    html = explain(made)
    assert cards(html) == [
        ("node", "layer 0", True),
        ("alike", "2 more like this", False),
        ("node", "layer 1", False),
        ("node", "layer 4", False),
        ("node", "layer 2", True),
        ("node", "layer 3", True),
    ]


def test_findings_in_a_fold_are_counted_at_it():
    made = explain_models.many(4)
    for node in made.graph.node[1:]:
        node.attribute[1].i = 24
    assert cards(explain(made))[1:3] == [("node", "layer 1", True), ("alike", "2 more like this", False)]
    (fold,) = explain(made).split('class="alike"')[1:]
    assert '<span class="badge error">2 errors</span>' in fold.split("</summary>")[0]


def test_nodes_that_differ_in_what_the_page_tells_are_of_different_kinds():
    made = explain_models.many(2)
    other_lengths = explain_models.many(2)
    other_lengths.graph.node[1].input[2] = "other"
    other_lengths.graph.initializer.append(models.lengths([30, 100], "other"))
    other_type = explain_models.many(2)
    other_type.graph.node[1].input[0] = "x2"
    other_type.graph.input.append(models.value("x2", np.float16, (100, 4, 32)))
    other_name = explain_models.many(2)
    other_name.graph.node[1].input[0] = "x2"
    other_name.graph.input.append(models.value("x2", np.float16, (100, 4, 16)))
    wrong_lengths = explain_models.many(3)
    for index, lengths in ((0, [40, 20]), (1, [50, 20]), (2, [40, 20])):
        wrong_lengths.graph.node[index].input[2] = f"wrong{index}"
        wrong_lengths.graph.initializer.append(models.lengths(lengths, f"wrong{index}"))
    for model, wanted in ((made, 1), (other_lengths, 2), (other_type, 2), (other_name, 1), (wrong_lengths, 2)):
        found, _ = subjects(analyse(model), Report("", "cpu", ()), None)
        assert len({kind(subject) for subject in found}) == wanted


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("/model/layers.12/self_attn/compress_k", "model/layers.12"),
        ("model.layers.3.attn.weight", "model.layers.3"),
        ("transformer.h.7.attn", "transformer.h.7"),
        ("encoder/block_table_1", ""),
        ("layer_norm_1", ""),
        ("players.1", ""),
        ("x" * 100_000 + "layers.1", ""),
    ],
)
def test_a_layer_is_told_by_names(name, layer):
    made = explain_models.many(1)
    made.graph.node[0].name = name
    (subject,), _ = subjects(analyse(made), Report("", "cpu", ()), None)
    assert layer_name(subject) == layer


def test_the_overview_has_a_row_for_each_kind_and_all_nodes_in_a_fold():
    html = explain(explain_models.layered(4))
    page = Page(part(html, "overview"))
    assert len(page.named("tbody")) == 2
    assert [text for _, _, text in page.named("summary")] == ["All 8 nodes, one by one"]
    assert len(page.named("tr")) == 2 + 1 + 8  # with two heads
    assert "and 7 more like it" in page.text
    assert "32 / 16 tokens" in page.text
    assert "one by one" not in explain(models.compress())
