"""Prints the requirements of one extra of pyproject.toml, one per line.

pip can install an extra only together with the project, but the project's build needs some of them before that.
"""

import re
import sys
from pathlib import Path


def requirements(extra: str) -> list[str]:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    # Not tomllib: Python 3.10 has none, and this runs before anything is installed.
    block = re.search(rf"^{re.escape(extra)} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    if block is None:
        raise SystemExit(f"pyproject.toml has no extra {extra!r}")
    return re.findall(r'"([^"]+)"', block.group(1))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
