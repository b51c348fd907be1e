"""A* over plans of actions in an environment: the policy proposes, costs choose what is tried next (ToolChain*).

A node is a plan; it is tried by playing it anew from the episode's start, which the same seed makes the same. Searches
of several tasks go on side by side: what the policy is asked for all of them is one call of the engine.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.config.schema import EpisodeSettings
from posttrain.data.examples import Example
from posttrain.environments import Step
from posttrain.errors import PosttrainError
from posttrain.rollout.collector import Collector
from posttrain.rollout.conversation import Conversation
from posttrain.rollout.engine import Request
from posttrain.rollout.episode import messages_of
from posttrain.rollout.plan_costs import FutureCost, MemoryAndFrequency, PastCost, Plan, RelativePosition
from posttrain.rollout.seeds import derived_seed
from posttrain.trajectory import Message, Prompt


@dataclass(frozen=True)
class SearchSettings:
    """proposals: actions asked for at each node. tries: nodes tried per task, at most. past, future: the costs."""

    proposals: int = 8
    tries: int = 50
    past: PastCost = field(default_factory=MemoryAndFrequency)
    future: FutureCost = field(default_factory=RelativePosition)


@dataclass(frozen=True)
class Found:
    """A solved plan, or none: the plan, what was said (prompt, then turns and answers), and how many nodes were tried.

    plan None: no solution within the tries.
    """

    example: Example
    plan: Plan | None
    prompt: Prompt
    messages: tuple[Message, ...]
    tried: int


@dataclass
class _Search:
    """One task's open nodes: (past + future cost, order of arrival, past cost, plan)."""

    example: Example
    open: list[tuple[float, int, float, Plan]]
    tried: int = 0
    arrived: int = 0
    found: Found | None = None

    def push(self, past: float, future: float, plan: Plan) -> None:
        self.arrived += 1
        heapq.heappush(self.open, (past + future, self.arrived, past, plan))


@dataclass(frozen=True)
class _Tried:
    """Where a plan leads: the conversation after it, and the environment's last answer (None: the plan is empty)."""

    conversation: Conversation
    last: Step | None
    said: tuple[Message, ...]


def search(
    collector: Collector, tasks: Sequence[Example], settings: SearchSettings, seed: int, memory: Sequence[Plan] = ()
) -> list[Found]:
    """Search a solution of each task; plans that are found are remembered for the tasks after them.

    The engine, environment, sampling and limits are the collector's. Tasks are searched in groups of as many as the
    environment has room for, at most 32: those of one group do not know each other's plans.
    """
    room = min(collector.environment.capacity or 32, 32)
    found: list[Found] = []
    remembered = [*memory]
    for first in range(0, len(tasks), room):
        own = asyncio.run(_side_by_side(collector, tasks[first : first + room], settings, seed, remembered))
        found += own
        remembered += [one.plan for one in own if one.plan is not None]
    return found


async def _side_by_side(
    collector: Collector, tasks: Sequence[Example], settings: SearchSettings, seed: int, memory: Sequence[Plan]
) -> list[Found]:
    searches = [_Search(example, [(0.0, 0, 0.0, ())]) for example in tasks]
    while running := [one for one in searches if one.found is None]:
        popped = [heapq.heappop(one.open) if one.open and one.tried < settings.tries else None for one in running]
        for one, node in zip(running, popped, strict=True):
            if node is None:
                one.found = Found(one.example, None, one.example.prompt, (), one.tried)
        alive = [(one, node) for one, node in zip(running, popped, strict=True) if node is not None]
        tried = await asyncio.gather(*(_guarded(collector, one.example, node[3], seed) for one, node in alive))
        asked: list[tuple[_Search, float, Plan, Conversation]] = []
        for (one, (_, _, past, plan)), result in zip(alive, tried, strict=True):
            one.tried += 1
            if result is None:
                continue
            step = result.last
            over = step is not None and (step.terminated or step.truncated or step.invalid is not None)
            if step is not None and step.solved:
                one.found = Found(one.example, plan, result.conversation.prompt, result.said, one.tried)
            elif not over and len(plan) < collector.limits.max_turns:
                asked.append((one, past, plan, result.conversation))
        _propose(collector, asked, settings, seed, memory)
    return [one.found for one in searches if one.found is not None]


async def _guarded(collector: Collector, example: Example, plan: Plan, seed: int) -> _Tried | None:
    """Where a plan leads; None, nowhere, where the environment failed."""
    try:
        return await _try(collector, example, plan, seed)
    except PosttrainError:
        raise
    except Exception:  # the environment's code is not ours: the plan is left, others are tried
        return None


async def _try(collector: Collector, example: Example, plan: Plan, seed: int) -> _Tried:
    """Play a plan from the start."""
    limits: EpisodeSettings = collector.limits
    at_start = derived_seed(seed, example.id, 0)
    observation, episode = await collector.environment.reset(example.prompt, example.columns, at_start)
    conversation = Conversation(example.prompt, limits.history_turns)
    conversation.start(observation)
    said: list[Message] = []
    step: Step | None = None
    try:
        for action in plan:
            step = await episode.step(action)
            answer = messages_of(step)
            said += [{"role": "assistant", "content": action}, *answer]
            conversation.add(action, answer)
    finally:
        await episode.close()
    over = step is not None and (step.terminated or step.truncated)
    return _Tried(conversation, step, tuple(said[: len(said) - len(messages_of(step))] if over and step else said))


def _propose(
    collector: Collector,
    asked: Sequence[tuple[_Search, float, Plan, Conversation]],
    settings: SearchSettings,
    seed: int,
    memory: Sequence[Plan],
) -> None:
    """Ask the policy what comes next at each node, and put each different action on its search's list."""
    requests = [
        Request(
            prompt.token_ids, derived_seed(seed, one.example.id, len(plan), "\n".join(plan), number), prompt.pictures
        )
        for one, _, plan, conversation in asked
        for prompt in [conversation.encode(collector.tokenizer)]
        for number in range(settings.proposals)
    ]
    completions = collector.engine.generate(requests, collector.sampling) if requests else []
    texts = collector.tokenizer.batch_decode([list(one.token_ids) for one in completions], skip_special_tokens=True)
    for index, (one, past, plan, _) in enumerate(asked):
        own = texts[index * settings.proposals : (index + 1) * settings.proposals]
        for action, count in Counter(text for text in own if text).items():
            longer = (*plan, action)
            cost = past + settings.past(longer, count / settings.proposals, memory)
            one.push(cost, settings.future(longer, memory), longer)
