"""tau2 airline: the task's own actions solve it, idleness solves what asks for nothing, the user may be a partner."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.environments.tau2 import Service, tau2
from posttrain.environments.tool_calls import ToolCall, parse_tool_calls, write_call


def opened(seed: int, *, scripted: bool = True) -> tuple[Service, Any]:
    service = Service(domain="airline", scripted=scripted)
    return service, service.reset({"seed": seed}, 0)


def expert(service: Service) -> Any:
    for _ in range(40):
        step = service.step(service.expert())
        if step.terminated:
            return step
    raise AssertionError("the expert does not end")


@pytest.fixture(scope="module")
def tasks() -> list[Any]:
    from posttrain.environments.tau2 import _tasks

    found = _tasks("airline")
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
    reservation = next(iter(service.tools.db.reservations))
    call = write_call(ToolCall("cancel_reservation", {"reservation_id": reservation}))
    step = service.step(call)
    assert step.observation.messages[0]["role"] == "tool" and step.invalid is None and not step.terminated
    assert service.tools.db.reservations[reservation].status == "cancelled"
    assert opened(0)[0].tools.db.reservations[reservation].status != "cancelled"
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
