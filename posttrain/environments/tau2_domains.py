"""tau2-bench's domains as inspect-evals bundles them: tasks, policies, tools over a conversation's own data, grading.

Airline and retail: a database that the agent's tools change; solved where it ends as the task's actions leave it and
the agent has told the user all that it had to. Telecom: a customer database and the user's phone, each with tools for
its own side; solved where the task's assertions about both hold and, where the task asks for it, its actions were
taken. Banking: a database that tools of both sides change, and documents that the agent searches for what it may do;
solved where it ends as the actions of both leave it or, where the task asks for that, they were taken.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

from posttrain.environments.tool_calls import Toolbox, ToolCall
from posttrain.errors import DataError

Domain = Literal["airline", "retail", "telecom", "banking"]
_READ_NOTHING = {"calculate", "transfer_to_human_agents"}


@dataclass
class Talk:
    """What the agent told the user, and the calls of both sides, in order."""

    told: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    user_calls: list[ToolCall] = field(default_factory=list)


class Desk(Protocol):
    """One conversation's data with the tools over it; user: those of the user's side, None where it has none."""

    agent: Toolbox
    user: Toolbox | None

    def solved(self, talk: Talk) -> bool:
        """Whether the conversation that ends now has solved its task."""
        ...


def desk_of(domain: Domain, task: Any) -> Desk:
    """The desk at which a conversation about `task` begins."""
    if domain == "banking":
        return Bank(task)
    return Phones(task) if domain == "telecom" else Records(domain, task)


class Records:
    """Airline and retail: the agent's tools over a database."""

    def __init__(self, domain: Domain, task: Any) -> None:
        self._domain, self._task = domain, task
        self.user: Toolbox | None = None
        self.tools = _copy(domain, store := _store())
        self.agent = _toolbox(domain, store)

    def solved(self, talk: Talk) -> bool:
        """inspect-evals' `db_match` and `score_communicated_info`."""
        criteria = self._task.evaluation_criteria
        said = "\n".join(talk.told).lower().replace(",", "")
        if not all(one.lower() in said for one in criteria.communicate_info or []):
            return False
        if criteria.actions is None:
            return True
        expected = _copy(self._domain, _store())
        for action in criteria.actions:
            if action.name not in _READ_NOTHING:
                _carry_out(getattr(expected, action.name), action.arguments)
        return bool(expected.db.get_hash() == self.tools.db.get_hash())


class Phones:
    """Telecom: what the company knows of its customers, and the phone in the user's hand."""

    def __init__(self, task: Any) -> None:
        from inspect_evals.tau2.telecom.environment import Environment
        from inspect_evals.tau2.telecom.solver import perform_action

        self._task, store = task, _store()
        self.user: Toolbox | None = _toolbox("phone", store)
        self._both = Environment(_copy("phone", store), _copy("telecom", store))
        for action in (task.initial_state and task.initial_state.initialization_actions) or []:
            perform_action(self._both, action)
        self.agent = _toolbox("telecom", store)

    def solved(self, talk: Talk) -> bool:
        """inspect-evals' `telecom_scorer`."""
        criteria = self._task.evaluation_criteria
        if "ACTION" in criteria.reward_basis and not all(_taken(one, talk) for one in criteria.actions or []):
            return False
        self._both.sync_tools()
        sides = {"assistant": self._both.tools, "user": self._both.user_tools}
        return all(
            getattr(sides[one.env_type], one.func_name)(**one.arguments) == one.assert_value
            for one in criteria.env_assertions or []
        )


class Bank:
    """Banking: accounts that both sides have tools over."""

    def __init__(self, task: Any) -> None:
        self._task, store = task, _store()
        self.tools, _ = _accounts(task, store)
        self.agent = _toolbox("banking", store)
        self.user: Toolbox | None = _toolbox("customer", store)

    def solved(self, talk: Talk) -> bool:
        """inspect-evals' `banking_scorer`."""
        criteria = self._task.evaluation_criteria
        actions = criteria.actions or []
        if "ACTION" in criteria.reward_basis and not all(_taken(one, talk) for one in actions):
            return False
        if "DB" not in criteria.reward_basis or criteria.actions is None:
            return True
        agent, user = _accounts(self._task, _store())
        for action in actions:
            if action.name not in _READ_NOTHING:
                _carry_out(getattr(agent if action.requestor == "assistant" else user, action.name), action.arguments)
        return bool(agent.db.get_hash() == self.tools.db.get_hash())


@lru_cache
def tasks_of(domain: Domain) -> list[Any]:
    """The tasks of the domain's base split, all where it has no splits; DataError where there are none."""
    from inspect_evals.tau2.data_model.tasks import Task

    folder = _folder(domain)
    splits = folder / "split_tasks.json"
    split = set(json.loads(splits.read_text(encoding="utf-8"))["base"]) if splits.is_file() else None
    packed = folder / "tasks.json.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.is_file() else (folder / "tasks.json").read_bytes()
    found = [Task.model_validate(row) for row in json.loads(content) if split is None or row["id"] in split]
    if not found:
        raise DataError(f"tau2 {domain}: {folder} has no tasks of its base split")
    return found


def policy_of(domain: Domain) -> str:
    """What the agent must keep to."""
    if domain == "telecom":
        from inspect_evals.tau2.telecom.agents import get_domain_policy

        text = get_domain_policy(workflow=False)
    elif domain == "banking":
        from inspect_evals.tau2.banking.agents import _get_domain_policy

        text = _get_domain_policy("grep")
    else:
        files = (_folder(domain) / name for name in ("policy.txt", "policy.md"))
        text = next(file for file in files if file.is_file()).read_text(encoding="utf-8")
    return f"<policy>\n{text}\n</policy>"


def _folder(domain: Domain) -> Any:
    from inspect_evals.tau2.utils import TAU2_DATA_DIR

    return TAU2_DATA_DIR / "domains" / ("banking_knowledge" if domain == "banking" else domain)


def _carry_out(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    from inspect_ai.tool import ToolError

    try:
        function(**arguments)
    except ToolError:
        return  # tau2's own grading goes on too


def _taken(action: Any, talk: Talk) -> bool:
    """Whether one of the calls of the action's side is the action: its name, and the arguments that count."""
    from inspect_evals.tau2.utils import deep_equal_unordered

    calls = talk.calls if action.requestor == "assistant" else talk.user_calls
    counting = [] if action.name == "transfer_to_human_agents" else action.compare_args

    def same(arguments: Mapping[str, Any]) -> bool:
        if counting is None:
            return bool(deep_equal_unordered(dict(arguments), action.arguments))
        own, wanted = ({key: one.get(key) for key in counting} for one in (arguments, action.arguments))
        return bool(deep_equal_unordered(own, wanted))

    return any(call.name == action.name and same(call.arguments) for call in calls)


_Side = Literal["airline", "retail", "telecom", "phone", "banking", "customer"]
"""Whose tools: the agent's of a domain, the user's of telecom, or the user's of banking."""


def _side(side: _Side) -> tuple[Any, str, Iterable[Callable[[], Any]]]:
    """The class that holds the data, the name that inspect-evals' tools find it by, and these tools."""
    if side == "airline":
        from inspect_evals.tau2.airline.AirlineAgentTools import AirlineAgentTools
        from inspect_evals.tau2.airline.tools import all_airline_tools

        return AirlineAgentTools, "AirlineTools", all_airline_tools
    if side == "retail":
        from inspect_evals.tau2.retail.RetailAgentTools import RetailAgentTools
        from inspect_evals.tau2.retail.tools import all_retail_tools

        return RetailAgentTools, "RetailTools", all_retail_tools
    if side == "telecom":
        from inspect_evals.tau2.telecom.TelecomAgentTools import TelecomAgentTools
        from inspect_evals.tau2.telecom.tools import all_telecom_agent_tools

        return TelecomAgentTools, "TelecomAgentTools", all_telecom_agent_tools
    if side == "phone":
        from inspect_evals.tau2.telecom.TelecomUserTools import TelecomUserTools
        from inspect_evals.tau2.telecom.user_tools import all_telecom_user_tools

        return TelecomUserTools, "TelecomUserTools", all_telecom_user_tools
    if side == "banking":
        from inspect_evals.tau2.banking.BankingAgentTools import BankingAgentTools
        from inspect_evals.tau2.banking.tools import all_banking_agent_tools, banking_grep

        return BankingAgentTools, "BankingAgentTools", [*all_banking_agent_tools, banking_grep]
    from inspect_evals.tau2.banking.BankingUserTools import BankingUserTools
    from inspect_evals.tau2.banking.user_tools import all_banking_user_tools

    return BankingUserTools, "BankingUserTools", all_banking_user_tools


def _store() -> Any:
    from inspect_ai.util import Store

    return Store()


@lru_cache
def _first(side: _Side) -> Any:
    """The data as it is at first; read once a process."""
    kind, name, _ = _side(side)
    found = kind(store=_store(), instance=name)
    found.initialize()
    return found


def _copy(side: _Side, store: Any) -> Any:
    """The data as it is at first, in a store of its own."""
    first = _first(side)
    return type(first)(store=store, instance=first.instance, db=copy.deepcopy(first.db), initialized=True)


def _accounts(task: Any, store: Any) -> tuple[Any, Any]:
    """The agent's and the user's hold on one database, as the task begins."""
    from inspect_evals.tau2.banking.environment import apply_initial_state

    agent = _copy("banking", store)
    kind, name, _ = _side("customer")
    user = kind(store=store, instance=name, db=agent.db, initialized=True)
    apply_initial_state(agent, user, copy.deepcopy(task.initial_state))  # its rows become those of the database
    return agent, user


def _toolbox(side: _Side, store: Any) -> Toolbox:
    """The side's tools over what `store` holds, with the schemas that inspect-evals gives them."""
    defined = _definitions(side)
    functions = {name: partial(_within, store, function) for name, (function, _) in defined.items()}
    return Toolbox(functions, tuple(schema for _, schema in defined.values()))


def _within(store: Any, function: Callable[..., Any], **arguments: Any) -> Any:
    """What the tool answers where `store` is the one that it finds its data in."""
    from inspect_ai.util._store import init_subtask_store

    def run() -> Any:
        init_subtask_store(store)
        return asyncio.run(function(**arguments))

    return contextvars.copy_context().run(run)


@lru_cache
def _definitions(side: _Side) -> dict[str, tuple[Callable[..., Any], Mapping[str, Any]]]:
    from inspect_ai.tool import ToolDef

    found: dict[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {}
    for one in map(ToolDef, (make() for make in _side(side)[2])):
        parameters = one.parameters.model_dump(exclude_none=True)
        name = one.name.removeprefix("banking_")  # as the bank's documents call them
        schema = {"name": name, "description": one.description, "parameters": parameters}
        found[name] = one.tool, {"type": "function", "function": schema}
    return found
