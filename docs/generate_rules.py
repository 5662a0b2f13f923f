"""Writes docs/rules.md from the checker's rules: `python docs/generate_rules.py`.

A test compares the file with `markdown()`, so that it is never out of date.
"""

from __future__ import annotations

from pathlib import Path

from nsa_onnx.checker.documentation import markdown

OUTPUT = Path(__file__).with_name("rules.md")

if __name__ == "__main__":
    OUTPUT.write_text(markdown())
    print(OUTPUT)
