"""tau2-bench (arXiv 2506.07982): customer service with tools over a database, for a user who is simulated.

Tasks, policies, tools and the user's guidelines are those that inspect-evals bundles; grading is its own and needs no
judge: an episode has solved its task where the database ends as the task's actions leave it and the agent has told the
user all that it had to. Many tasks ask for no action, so an agent that does nothing solves some (`eval/tau2.py`).
Domains: airline and retail; telecom, where the user has tools too, and banking are not covered.

A recipe's `partner` is the user. Without one a script is: it says its whole instructions at once and leaves after the
agent's first plain answer, which shows that tools are used and no more.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import count
from typing import Any, Literal

from posttrain.catalog import install_command
from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.tool_calls import Toolbox, ToolCall, parse_tool_calls, write_call
from posttrain.environments.two_sided import PARTNER, TwoSidedProcesses
from posttrain.errors import DataError, MissingDependencyError
from posttrain.trajectory import Message

Domain = Literal["airline", "retail"]
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
_BEGIN = "Begin the interaction. Remember you are the customer, and you are interacting with a customer service agent."
_READ_NOTHING = {"calculate", "transfer_to_human_agents"}
_numbers = count()


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
    """One conversation, in the process that holds its database."""

    def __init__(self, *, domain: Domain, scripted: bool) -> None:
        self.domain, self.scripted = domain, scripted
        self.tools: Any = None
        self._told: list[str] = []
        self._calls: list[ToolCall] = []

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """The policy's instructions and tools, and what the user says first where the script is the user."""
        tasks = _tasks(self.domain)
        self.task = tasks[int(columns.get("seed", seed)) % len(tasks)]
        self.tools = _database(self.domain)
        self.box = _toolbox(self.domain, self.tools)
        opening: tuple[Message, ...] = ({"role": "system", "content": _INSTRUCTIONS + _policy(self.domain)},)
        self._speaks = PARTNER
        if self.scripted:
            self._speaks = _POLICY
            opening += told(str(self.task.user_scenario.instructions))
        return Observation(opening, self.box.schemas, info=self._info() | {PARTNER: self._user()})

    def step(self, action: str) -> Step:
        """The tools' answers, or what was said to the one who speaks next."""
        if self._speaks == PARTNER:
            return self._of_user(action)
        parsed = parse_tool_calls(action)
        if parsed.mistake is not None:
            return Step(Observation(told(parsed.mistake), info=self._info()), invalid=parsed.mistake)
        if parsed.calls:
            answered = self.box.answer(parsed.calls)
            self._calls += parsed.calls
            return Step(Observation(answered.messages, info=self._info()), invalid=answered.mistake)
        self._told.append(parsed.text)
        if self.scripted:
            return self._ended("the script leaves")
        self._speaks = PARTNER
        return Step(Observation(told(parsed.text), info=self._info()))

    def expert(self) -> str:
        """The task's next action, and at the end all that the user must be told."""
        criteria = self.task.evaluation_criteria
        done = len(self._calls)
        actions = list(criteria.actions or [])
        if done < len(actions):
            return write_call(ToolCall(actions[done].name, actions[done].arguments))
        return " ".join(["It is done.", *(criteria.communicate_info or [])])

    def close(self) -> None:
        """Let the database go."""
        self.tools = None

    def _of_user(self, said: str) -> Step:
        if any(end in said for end in _ENDS):
            return self._ended("the user leaves")
        self._speaks = _POLICY
        return Step(Observation(told(said), info=self._info()))

    def _ended(self, why: str) -> Step:
        solved = self._solved()
        return Step(reward=float(solved), terminated=True, solved=solved, info={"reason": why})

    def _solved(self) -> bool:
        """inspect-evals' `db_match` and `score_communicated_info`."""
        criteria = self.task.evaluation_criteria
        expected = _database(self.domain)
        for action in criteria.actions or []:
            if action.name not in _READ_NOTHING:
                _carry_out(getattr(expected, action.name), action.arguments)
        said = "\n".join(self._told).lower().replace(",", "")
        if not all(one.lower() in said for one in criteria.communicate_info or []):
            return False
        return criteria.actions is None or bool(expected.db.get_hash() == self.tools.db.get_hash())

    def _info(self) -> dict[str, Any]:
        return {} if self.scripted else {"speaks": self._speaks}

    def _user(self) -> tuple[Message, ...]:
        """What the user's role is told first."""
        from inspect_evals.tau2.utils import USER_SIMULATOR_GUIDELINES

        scenario = f"{USER_SIMULATOR_GUIDELINES}\n<scenario>\n{self.task.user_scenario}\n</scenario>\n"
        return ({"role": "system", "content": scenario}, *told(_BEGIN))


def _carry_out(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    from inspect_ai.tool import ToolError

    try:
        function(**arguments)
    except ToolError:
        return  # tau2's own grading goes on too


@lru_cache
def _tasks(domain: Domain) -> list[Any]:
    """The tasks of the domain's base split; DataError where there are none."""
    from inspect_evals.tau2.data_model.tasks import Task
    from inspect_evals.tau2.utils import TAU2_DATA_DIR

    folder = TAU2_DATA_DIR / "domains" / domain
    split = set(json.loads((folder / "split_tasks.json").read_text(encoding="utf-8"))["base"])
    rows = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    found = [Task.model_validate(row) for row in rows if row["id"] in split]
    if not found:
        raise DataError(f"tau2 {domain}: {folder} has no tasks of its base split")
    return found


def _policy(domain: Domain) -> str:
    from inspect_evals.tau2.utils import TAU2_DATA_DIR

    folder = TAU2_DATA_DIR / "domains" / domain
    file = next(path for path in (folder / "policy.txt", folder / "policy.md") if path.is_file())
    return f"<policy>\n{file.read_text(encoding='utf-8')}\n</policy>"


@lru_cache
def _loaded(domain: Domain) -> Any:
    """The domain's tools with the database as it is at first; read once a process."""
    tools = _tools_of(domain)(instance=f"first of {domain}")
    tools.initialize()
    return tools


def _database(domain: Domain) -> Any:
    """The domain's tools over a database of their own."""
    first = _loaded(domain)
    return type(first)(instance=f"{domain} {next(_numbers)}", db=copy.deepcopy(first.db), initialized=True)


def _tools_of(domain: Domain) -> Any:
    if domain == "airline":
        from inspect_evals.tau2.airline.AirlineAgentTools import AirlineAgentTools

        return AirlineAgentTools
    from inspect_evals.tau2.retail.RetailAgentTools import RetailAgentTools

    return RetailAgentTools


def _toolbox(domain: Domain, tools: Any) -> Toolbox:
    """The domain's tools over `tools`, with the schemas that inspect-evals gives them."""
    defined = _definitions(domain)
    functions = {name: getattr(tools, name, function) for name, (function, _) in defined.items()}
    return Toolbox(functions, tuple(schema for _, schema in defined.values()))


@lru_cache
def _definitions(domain: Domain) -> dict[str, tuple[Callable[..., Any], Mapping[str, Any]]]:
    from inspect_ai.tool import ToolDef

    if domain == "airline":
        from inspect_evals.tau2.airline.tools import all_airline_tools as made
    else:
        from inspect_evals.tau2.retail.tools import all_retail_tools as made
    found: dict[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {}
    for one in map(ToolDef, (make() for make in made)):
        parameters = one.parameters.model_dump(exclude_none=True)
        schema = {"name": one.name, "description": one.description, "parameters": parameters}
        found[one.name] = one.tool, {"type": "function", "function": schema}
    return found
