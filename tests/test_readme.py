"""What the README shows runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

ALONE = """
import sys

class OnlyTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"accelerate", "datasets", "pydantic", "rich", "transformers", "typer", "yaml"}:
            raise ImportError(f"{name} is not a dependency of the estimator")

sys.meta_path.insert(0, OnlyTorch())
"""


def test_the_estimator_is_a_library_that_needs_torch_alone() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(program.strip().splitlines()) <= 12
    result = subprocess.run([sys.executable, "-c", ALONE + program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "tensor([" in result.stdout
