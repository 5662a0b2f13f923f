"""The inputs for `polygraphy run`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from layers import FEEDS


def load_data():
    yield FEEDS
