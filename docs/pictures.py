"""Makes the pictures of the documentation, from the code of its pages: python docs/pictures.py."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent


def main() -> None:
    """Run the tutorial, and keep its picture."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    path = DOCS / "pictures" / "tutorial.png"
    path.parent.mkdir(exist_ok=True)
    exec(code.replace('"signal.png"', repr(str(path)) + ", dpi=80"), {})  # noqa: S102 - our own page's


if __name__ == "__main__":
    main()
