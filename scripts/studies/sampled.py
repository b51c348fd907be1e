"""Files of what a model says: demonstrations sampled from a teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from studies.context import Context, Made


@dataclass(frozen=True)
class Sampled:
    """Rows of prompt and completion: `samples` completions of `model` at temperature 1 for each prompt of `rows`."""

    model: Made
    rows: Made
    samples: int = 1
    max_tokens: int = 8

    def path(self, context: Context) -> str:
        """The file, written where it is missing."""
        model, rows = self.model.path(context), self.rows.path(context)
        key = [model, rows, self.samples, self.max_tokens]
        return context.file(key, "jsonl", lambda path: self._write(path, model, rows, context.seed))

    def _write(self, path: Path, model: str, rows: str, seed: int) -> None:
        from studies import measure

        asking = measure.Asking(rows, max_tokens=self.max_tokens, samples=self.samples, temperature=1.0)
        played = asking.play(measure.Loaded.of(model), seed)
        said = [
            {"prompt": trajectory.columns["prompt"], "completion": trajectory.completion or "?"}
            for group in played
            for trajectory in group.trajectories
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in said))
