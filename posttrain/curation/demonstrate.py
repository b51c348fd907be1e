"""`posttrain demonstrate`: documents written for people into demonstrations for agents, by a model.

Synatra's pipeline ("Synatra: Turning Indirect Knowledge into Direct Demonstrations for Digital Agents at Scale"): each
document goes into a prompt, a model answers with a demonstration, answers that are none are left out. What is kept says
where it comes from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import catalog
from posttrain.config.schema import SourceSettings
from posttrain.curation.demonstration import NoDemonstrationError, messages_of
from posttrain.curation.written import check_output
from posttrain.data.examples import Example
from posttrain.data.sources import load_source
from posttrain.errors import RecipeError
from posttrain.evaluation.model import NamedModel, open_model
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Sampling
from posttrain.trajectory import StopReason, Trajectory

TEMPLATE = Path(__file__).with_name("tutorial.txt")
_COMPLETIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Writer:
    """The model that writes demonstrations, and how it is asked.

    template: a file, a format string over the document's columns. samples: demonstrations asked for of each document.
    action: a regular expression that every action must match as a whole.
    """

    model: str
    template: Path = TEMPLATE
    engine: str = "transformers"
    samples: int = 1
    temperature: float = 0.7
    max_tokens: int = 1024
    action: str | None = None
    seed: int = 0

    def pattern(self) -> re.Pattern[str] | None:
        """The compiled `action`. RecipeError where it is no regular expression."""
        try:
            return None if self.action is None else re.compile(self.action, re.DOTALL)
        except re.error as error:
            raise RecipeError(f"--action {self.action!r}: not a regular expression: {error}") from error


@dataclass(frozen=True)
class Written:
    """Numbers of documents read, of demonstrations written, and of answers that were none, by reason."""

    documents: int
    demonstrations: int
    rejected: Counter[str]

    def text(self) -> str:
        """In words, a line a reason."""
        total = self.demonstrations + self.rejected.total()
        first = f"{self.documents:,} documents, {self.demonstrations:,} of {total:,} answers are demonstrations"
        return "\n".join([first, *(f"  {count:,} not: {why}" for why, count in self.rejected.most_common())])


def demonstrate(documents: SourceSettings, output: Path, writer: Writer) -> Written:
    """Write a demonstration a line to `output` (.jsonl); other answers, and why, to .rejected.jsonl beside it.

    A line: `messages` (a recipe's demonstrations), document (its source and row), sample, and `made_by`: model,
    template (the start of its SHA-256), seed, temperature, max_tokens, action. Answers that were cut off are none. What
    is drawn depends on the seed, the document and the sample alone, so that the same command goes on after a kill.
    UserError before the model is loaded for a mistake in what is given, as where the files are those of another
    command.
    """
    rejected_file = output.with_suffix(".rejected.jsonl")
    for file in (output, rejected_file):
        check_output(file, (".jsonl",), new=False)
    pattern = writer.pattern()
    sources = load_source(_prompted(documents, writer.template), "prompts")
    made_by = {
        "model": writer.model,
        "template": hashlib.sha256(writer.template.read_bytes()).hexdigest()[:16],
        "seed": writer.seed,
        "temperature": writer.temperature,
        "max_tokens": writer.max_tokens,
        "action": writer.action,
    }
    done = {(row["document"], row["sample"]) for file in (output, rejected_file) for row in _lines(file, made_by)}
    samples = range(writer.samples)
    left = [example for example in sources if not done.issuperset((example.id, sample) for sample in samples)]
    collector = open_writer(writer)
    at_once = max(1, _COMPLETIONS_AT_ONCE // writer.samples)
    with output.open("a", encoding="utf-8") as kept, rejected_file.open("a", encoding="utf-8") as rejected:
        for start in range(0, len(left), at_once):
            for example, sample, answer in _answers(collector, left[start : start + at_once], writer):
                if (example.id, sample) not in done:
                    found = _found(answer, pattern)
                    line = {**found, "document": example.id, "sample": sample, "made_by": made_by}
                    (kept if "messages" in found else rejected).write(json.dumps(line) + "\n")
            kept.flush()
            rejected.flush()
    reasons = Counter(row["why"].partition(":")[0] for row in _lines(rejected_file, made_by))
    return Written(len(sources), len(_lines(output, made_by)), reasons)


def _lines(file: Path, made_by: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the file holds, without a last line that was not written whole. RecipeError where others made it."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        if content and not whole:
            raise ValueError("no line")
        rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        others = [row["made_by"] for row in rows if row["made_by"] != made_by]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{file}: exists, and was not written by this command; allowed: a new file") from error
    if others:
        raise RecipeError(f"{file}: exists, and was made by {others[0]}, not by {made_by}; allowed: a new file")
    if whole != content:
        file.write_bytes(whole)
    return rows


def _prompted(documents: SourceSettings, template: Path) -> SourceSettings:
    """The documents with the template of the file, as conversations."""
    if documents.template is not None:
        raise RecipeError("template: the prompt's is a file; allowed: --template FILE")
    if not template.is_file():
        raise RecipeError(f"--template {template}: no such file")
    return documents.model_copy(update={"template": template.read_text(encoding="utf-8"), "chat": True})


def open_writer(writer: Writer) -> Collector:
    """Plays single turns with the writer's model, ungraded."""
    if writer.samples > 1 and writer.temperature == 0:
        raise RecipeError(f"--samples {writer.samples} with temperature 0 are all the same; allowed: above 0")
    model = NamedModel(writer.model, writer.engine)
    model.check()
    opened = open_model(model, writer.seed)
    sampling = Sampling(writer.max_tokens, opened.stop_ids, writer.temperature)
    return Collector(opened.engine, catalog.build("environments", "single_turn", {}), None, opened.tokenizer, sampling)


def _answers(
    collector: Collector, examples: Sequence[Example], writer: Writer
) -> list[tuple[Example, int, Trajectory]]:
    """Every answer to some documents, with its document and number."""
    groups = collector.collect(examples, writer.samples, writer.seed)
    return [
        (example, sample, one)
        for example, group in zip(examples, groups, strict=True)
        for sample, one in enumerate(group.trajectories)
    ]


def _found(answer: Trajectory, action: re.Pattern[str] | None) -> dict[str, Any]:
    """The demonstration's messages; or why there is none, and what was said instead."""
    try:
        if answer.error is not None:
            raise NoDemonstrationError(f"not sampled: {answer.error}")
        if answer.stop_reason is StopReason.LENGTH:
            raise NoDemonstrationError("cut off at max_tokens or the model's window")
        return {"messages": messages_of(answer.completion, action)}
    except NoDemonstrationError as error:
        return {"why": str(error), "completion": answer.completion}
