"""tau2: the task's own actions solve it, idleness solves what asks for nothing, the user may be a partner."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest

from posttrain.environments.tau2 import Service, tau2
from posttrain.environments.tau2_domains import tasks_of
from posttrain.environments.tool_calls import ToolCall, parse_tool_calls, write_call


def opened(seed: int, *, scripted: bool = True, domain: Any = "airline") -> tuple[Service, Any]:
    service = Service(domain=domain, scripted=scripted)
    return service, service.reset({"seed": seed}, 0)


def expert(service: Service) -> Any:
    for _ in range(40):
        step = service.step(service.expert())
        if step.terminated:
            return step
    raise AssertionError("the expert does not end")


@pytest.fixture(scope="module")
def tasks() -> list[Any]:
    found = tasks_of("airline")
    assert len(found) == 50
    return found


def changes(task: Any) -> bool:
    """Whether the task's actions write to the database."""
    return any(not action.name.startswith(("get", "search", "list", "calc", "transfer")) for action in actions(task))


def actions(task: Any) -> list[Any]:
    return task.evaluation_criteria.actions or []


def test_the_tasks_actions_solve_it_and_nothing_solves_what_changes_nothing(tasks: list[Any]) -> None:
    wanted = [next(i for i, task in enumerate(tasks) if changes(task) is kind) for kind in (True, False)]
    for seed in wanted:
        solved = expert(opened(seed)[0])
        assert solved.solved is True and solved.reward == 1.0
        idle = opened(seed)[0].step("I do not know.")
        told_nothing = not tasks[seed].evaluation_criteria.communicate_info
        assert idle.terminated and idle.solved is (not changes(tasks[seed]) and told_nothing)


def test_tools_answer_and_each_conversation_has_its_own_database(tasks: list[Any]) -> None:
    service, opening = opened(0)
    names = [schema["function"]["name"] for schema in opening.tools]
    assert {"cancel_reservation", "get_user_details"} <= set(names)
    assert opening.messages[0]["role"] == "system" and "<policy>" in opening.messages[0]["content"]
    reservation = next(iter(service.desk.tools.db.reservations))
    call = write_call(ToolCall("cancel_reservation", {"reservation_id": reservation}))
    step = service.step(call)
    assert step.observation.messages[0]["role"] == "tool" and step.invalid is None and not step.terminated
    assert service.desk.tools.db.reservations[reservation].status == "cancelled"
    assert opened(0)[0].desk.tools.db.reservations[reservation].status != "cancelled"
    bad = service.step(write_call(ToolCall("cancel_reservation", {"id": reservation})))
    assert bad.invalid is not None and not bad.terminated
    assert service.step("<tool_call>{").invalid is not None


def test_the_user_is_a_partner(tasks: list[Any]) -> None:
    service, opening = opened(0, scripted=False)
    assert opening.info["speaks"] == "partner"
    system, begin = opening.info["partner"]
    assert str(tasks[0].user_scenario) in system["content"] and begin["content"].startswith("Begin the interaction.")
    heard = service.step("Hello, I need help.")
    assert (
        heard.observation.info["speaks"] == "policy"
        and heard.observation.messages[0]["content"] == "Hello, I need help."
    )
    answer = service.step("What is it?")
    assert answer.observation.info["speaks"] == "partner" and not answer.terminated
    assert service.step("Never mind. ###STOP###").terminated


def test_what_the_expert_writes_is_read_back(tasks: list[Any]) -> None:
    seed = next(i for i, task in enumerate(tasks) if len(actions(task)) > 1)
    service, _ = opened(seed)
    (call,) = parse_tool_calls(service.expert()).calls
    assert (call.name, call.arguments) == (actions(tasks[seed])[0].name, actions(tasks[seed])[0].arguments)


def test_the_environment_has_another_side() -> None:
    from posttrain.environments.speaker import TwoSided

    assert isinstance(tau2(), TwoSided)


def test_the_data_goes_with_its_conversation(tasks: list[Any]) -> None:
    seed = next(i for i, task in enumerate(tasks) if changes(task))
    service, _ = opened(seed)
    data = weakref.ref(service.desk.tools.db)
    assert expert(service).solved
    service.close()
    gc.collect()
    assert data() is None


PHONE = "Please use this on your phone: {}"


def first(domain: Any, kind: str) -> int:
    """The first task of a domain with an action of this kind."""
    return next(i for i, task in enumerate(tasks_of(domain)) if kind in {one.name for one in actions(task)})


BOTH_SIDES = {
    "telecom": ("toggle_airplane_mode", "make_payment", "transfer_to_human_agents"),
    "banking": (
        "apply_for_credit_card",
        "call_discoverable_user_tool",
        "transfer_to_human_agents",
        "change_user_email",
    ),
}


@pytest.mark.parametrize(("domain", "kind"), [(domain, kind) for domain, kinds in BOTH_SIDES.items() for kind in kinds])
def test_what_is_asked_of_both_sides_is_solved_by_both_and_by_nobody_alone(domain: str, kind: str) -> None:
    seed = first(domain, kind)
    assert expert(opened(seed, domain=domain)[0]).solved is True
    assert opened(seed, domain=domain)[0].step("I do not know.").solved is False
    alone, _ = opened(seed, domain=domain)
    for action in actions(alone.task):
        if action.requestor == "assistant":
            alone.step(write_call(ToolCall(action.name, action.arguments)))
    both = any(action.requestor == "user" for action in actions(alone.task))
    assert alone.step("It is done.").solved is not both


def test_the_script_uses_the_tools_that_it_is_asked_to() -> None:
    service, opening = opened(first("telecom", "set_network_mode_preference"), domain="telecom")
    names = {schema["function"]["name"] for schema in opening.tools}
    assert "refuel_data" in names and "set_network_mode_preference" not in names, "the phone is the user's"
    found = service.step("check_network_mode_preference, please, and run_speed_test.")
    (answer,) = found.observation.messages
    assert answer["role"] == "user" and "2g_only" in answer["content"] and "run_speed_test: " in answer["content"]
    service.step(PHONE.format('set_network_mode_preference {"mode": "4g_only"}'))
    assert "4g_only" in service.step("check_network_mode_preference {").observation.messages[0]["content"]
    bad = service.step(PHONE.format('set_network_mode_preference {"speed": 1}'))
    assert "error" in bad.observation.messages[0]["content"] and not bad.terminated
    assert service.step(write_call(ToolCall("run_speed_test", {}))).invalid is not None, "it is not the agent's"


def test_a_partner_uses_its_phone_before_it_answers() -> None:
    service, opening = opened(first("telecom", "set_network_mode_preference"), domain="telecom", scripted=False)
    assert '"set_network_mode_preference"' in opening.info["partner"][0]["content"]
    assert service.step("Hello.").observation.info["speaks"] == "policy"
    assert service.step("What does it show?").observation.info["speaks"] == "partner"
    call = write_call(ToolCall("check_network_mode_preference", {}))
    seen = service.step(call)
    assert seen.observation.info["speaks"] == "partner" and "2g_only" in seen.observation.messages[0]["content"]
    assert "not closed" in service.step("<tool_call>{").observation.messages[0]["content"]
    assert service.step("It says 2g_only.").observation.info["speaks"] == "policy"
    service.step("And now?")
    for _ in range(20):
        assert not service.step(call).terminated
    assert service.step(call).terminated, "nobody waits for ever"


def test_what_is_done_at_the_bank_is_not_known_to_the_next_conversation() -> None:
    """The rows that a task adds to the database are objects of the task's, and tools change rows in place."""

    def pays(task: Any) -> bool:
        called = [str(one.arguments.get("agent_tool_name")) for one in actions(task)]
        return task.initial_state is not None and any(name.startswith("pay_credit_card") for name in called)

    seed = next(i for i, task in enumerate(tasks_of("banking")) if pays(task))
    before = tasks_of("banking")[seed].model_dump_json()
    for _ in range(2):
        assert expert(opened(seed, domain="banking")[0]).solved is True
    assert tasks_of("banking")[seed].model_dump_json() == before


def test_the_bank_s_agent_searches_for_what_it_may_do() -> None:
    service, opening = opened(first("banking", "call_discoverable_user_tool"), domain="banking")
    names = {schema["function"]["name"] for schema in opening.tools}
    assert {"grep", "unlock_discoverable_agent_tool"} <= names and "apply_for_credit_card" not in names
    assert "`grep`" in opening.messages[0]["content"]
    found = service.step(write_call(ToolCall("grep", {"pattern": "submit_cash_back_dispute_\\d+"})))
    (answer,) = found.observation.messages
    assert "submit_cash_back_dispute_0589" in answer["content"]
    locked = {"agent_tool_name": "close_bank_account_7392", "arguments": "{}"}
    refused = service.step(write_call(ToolCall("call_discoverable_agent_tool", locked)))
    assert "unlock" in refused.observation.messages[0]["content"]
    form = {"user_id": "u", "transaction_id": "t"}
    call = {"discoverable_tool_name": "submit_cash_back_dispute_0589", "arguments": json.dumps(form)}
    asked = service.step(f"call_discoverable_user_tool {json.dumps(call)}")
    assert "has not been given to you" in asked.observation.messages[0]["content"]
