"""A recipe file with its plug-ins, written to a temporary folder that is the working directory."""

import pytest

from posttrain.config import load_recipe
from posttrain.errors import RecipeError

RECIPE = """\
# A hybrid run.
model:
  config: {model_type: qwen3, hidden_size: 64}
tokenizer: characters
algorithm: hpt
demonstrations: rows.jsonl
rewards:
  - exact_match
  - {name: shortness, weight: 0.5, limit: 20}
environment: arena
rollout: {group_size: 4}
training:
  steps: 10
  learning_rate: 1e-5
evaluation: {name: held_out, every_steps: 5}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: rows.jsonl, recipe.yaml, and plug-ins on POSTTRAIN_PATH."""
    files = {
        "rewards/exact_match.py": "def exact_match(completion, answer): return 1.0\n",
        "rewards/shortness.py": "def shortness(completion, *, limit: int = 10): return 1.0\n",
        "environments/arena.py": "def arena(*, rounds: int = 1): return None\n",
        "eval/held_out.py": "def held_out(*, data: str | None = None): return None\n",
        "rows.jsonl": '{"prompt": "a", "completion": "b"}\n',
        "recipe.yaml": RECIPE,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def message(folder):
    """The error of a recipe's text, or of overrides to the usual recipe."""

    def of(text=RECIPE, overrides=()):
        (folder / "recipe.yaml").write_text(text)
        with pytest.raises(RecipeError) as error:
            load_recipe("recipe.yaml", overrides)
        return str(error.value)

    return of
