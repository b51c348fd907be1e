"""tau2-bench (arXiv 2506.07982): customer service with tools over a database, for a user who is simulated.

Domains, tasks, tools and the user's guidelines are those that inspect-evals bundles; grading is its own and needs no
judge (`tau2_domains`). Many tasks ask for no action, so an agent that does nothing solves some (`eval/tau2.py`). In
telecom and banking the user has tools too, which the agent can only ask it to use.

A recipe's `partner` is the user. Without one a script is: it says its whole instructions at once, uses those of its
tools that the agent names, as in `set_network_mode_preference {"mode": "4g_only"}`, and leaves after the agent's first
plain answer that names none: it shows that tools are used and no more.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Mapping
from typing import Any

from posttrain.catalog import install_command
from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.tau2_domains import Domain, Talk, desk_of, policy_of, tasks_of
from posttrain.environments.tool_calls import Parsed, Toolbox, ToolCall, parse_tool_calls, write_call
from posttrain.environments.two_sided import PARTNER, TwoSidedProcesses
from posttrain.errors import MissingDependencyError
from posttrain.trajectory import Message

_POLICY = "policy"
_ENDS = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
_INSTRUCTIONS = """<instructions>
You are a customer service agent that helps the user according to the <policy> provided below.
In each turn you can either:
- Send a message to the user.
- Make a tool call.
You cannot do both at the same time.

Try to be helpful and always follow the policy. Always make sure you generate valid JSON only.
</instructions>
"""
_USERS_TOOLS = """
<tools>
{schemas}
</tools>
To call a tool, answer with nothing but <tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>.
"""
_BEGIN = "Begin the interaction. Remember you are the customer, and you are interacting with a customer service agent."
_MOST_CALLS = 20
"""Lines in a row in which a user may call tools; one that goes on has left."""


def tau2(*, domain: Domain = "airline", processes: int = 1, deadline_seconds: float = 120.0) -> Environment:
    """Tasks by the row's column `seed` (modulo their number), in the order of the domain's file.

    The policy writes tool calls in any format of `tool_calls`; their answers come back at once, and a plain text goes
    to the user. The reward, 1 or 0, comes with the end: the user's, or `episode.max_turns`.
    """
    if importlib.util.find_spec("inspect_evals") is None:
        raise MissingDependencyError(f"tau2's tasks and tools need it: {install_command('inspect-evals')}")
    make = "posttrain.environments.tau2:Service"
    return TwoSidedProcesses.of(make, {"domain": domain}, processes, deadline_seconds, 32)


class Service:
    """One conversation, in the process that holds its data."""

    def __init__(self, *, domain: Domain, scripted: bool) -> None:
        self.domain, self.scripted = domain, scripted
        self.desk: Any = None
        self.talk = Talk()
        self._speaks = _POLICY
        self._num_calls = 0

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """The policy's instructions and tools, and what the user says first where the script is the user."""
        tasks = tasks_of(self.domain)
        self.task = copy.deepcopy(tasks[int(columns.get("seed", seed)) % len(tasks)])  # a conversation may change it
        self.desk = desk_of(self.domain, self.task)
        opening: tuple[Message, ...] = ({"role": "system", "content": _INSTRUCTIONS + policy_of(self.domain)},)
        self._speaks = PARTNER
        if self.scripted:
            self._speaks = _POLICY
            opening += told(str(self.task.user_scenario.instructions))
        return Observation(opening, self.desk.agent.schemas, info=self._info() | {PARTNER: self._user()})

    def step(self, action: str) -> Step:
        """The tools' answers, or what was said to the one who speaks next."""
        if self._speaks == PARTNER:
            return self._of_user(action)
        parsed = parse_tool_calls(action)
        if parsed.mistake is not None or parsed.calls:
            messages, mistake = self._called(parsed, self.desk.agent, self.talk.calls)
            return Step(Observation(messages, info=self._info()), invalid=mistake)
        self.talk.told.append(parsed.text)
        if self.scripted:
            return self._of_script(parsed.text)
        self._speaks = PARTNER
        return Step(Observation(told(parsed.text), info=self._info()))

    def expert(self) -> str:
        """The task's next action, or to ask the user for it; and at the end all that the user must be told."""
        criteria = self.task.evaluation_criteria
        left = list(criteria.actions or [])[len(self.talk.calls) + len(self.talk.user_calls) :]
        if not left:
            return " ".join(["It is done.", *(criteria.communicate_info or [])])
        call = ToolCall(left[0].name, left[0].arguments)
        if left[0].requestor == "assistant":
            return write_call(call)
        return f"Please use this: {call.name} {json.dumps(dict(call.arguments))}"

    def close(self) -> None:
        """Let the data go."""
        self.desk = None

    def _called(self, parsed: Parsed, box: Toolbox, calls: list[ToolCall]) -> tuple[tuple[Message, ...], str | None]:
        """What the tools answer, and why none of them was carried out (None: some was); the calls are added."""
        if parsed.mistake is not None:
            return told(parsed.mistake), parsed.mistake
        answered = box.answer(parsed.calls)
        calls += map(box.typed, parsed.calls)
        return answered.messages, answered.mistake

    def _of_user(self, said: str) -> Step:
        if any(end in said for end in _ENDS):
            return self._ended("the user leaves")
        parsed = parse_tool_calls(said) if self.desk.user is not None else Parsed(said)
        if parsed.mistake is not None or parsed.calls:
            self._num_calls += 1
            if self._num_calls > _MOST_CALLS:
                return self._ended("the user calls tools and says nothing")
            messages, _ = self._called(parsed, self.desk.user, self.talk.user_calls)
            return Step(Observation(messages, info=self._info()))
        self._speaks, self._num_calls = _POLICY, 0
        return Step(Observation(told(said), info=self._info()))

    def _of_script(self, asked: str) -> Step:
        """The script uses the tools that it is asked to; where there is none it leaves."""
        calls = () if self.desk.user is None else _named(asked, self.desk.user)
        if not calls:
            return self._ended("the script leaves")
        messages, _ = self._called(Parsed("", calls), self.desk.user, self.talk.user_calls)
        return Step(Observation(told("\n".join(f"{one['name']}: {one['content']}" for one in messages))))

    def _ended(self, why: str) -> Step:
        solved = self.desk.solved(self.talk)
        return Step(reward=float(solved), terminated=True, solved=solved, info={"reason": why})

    def _info(self) -> dict[str, Any]:
        return {} if self.scripted else {"speaks": self._speaks}

    def _user(self) -> tuple[Message, ...]:
        """What the user's role is told first."""
        from inspect_evals.tau2.utils import USER_SIMULATOR_GUIDELINES, USER_SIMULATOR_GUIDELINES_WITH_TOOLS

        tools, guidelines = "", USER_SIMULATOR_GUIDELINES
        if self.desk.user is not None:
            guidelines = USER_SIMULATOR_GUIDELINES_WITH_TOOLS
            tools = _USERS_TOOLS.format(schemas="\n".join(json.dumps(one) for one in self.desk.user.schemas))
        scenario = f"{guidelines}\n{tools}<scenario>\n{self.task.user_scenario}\n</scenario>\n"
        return ({"role": "system", "content": scenario}, *told(_BEGIN))


def _named(asked: str, box: Toolbox) -> tuple[ToolCall, ...]:
    """The tools that a text names, each with the JSON object right behind it, if there is one."""
    decoder, calls = json.JSONDecoder(), []
    for match in re.finditer(rf"\b({'|'.join(box.functions)})\b\s*", asked):
        try:
            arguments, _ = decoder.raw_decode(asked, match.end())
        except json.JSONDecodeError:
            arguments = {}
        calls.append(ToolCall(match[1], arguments if isinstance(arguments, dict) else {}))
    return tuple(calls)
