"""Tables of quality for tests."""

import yaml


def write(path, **values):
    """A table of EASE on a prepared directory, with other values in its place."""
    base = {"data": {"prepared": "prepared"}, "seeds": [0], "output": "out", "methods": [{"baseline": "ease"}]}
    path.write_text(yaml.safe_dump({**base, **values}))
    return path
