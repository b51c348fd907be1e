"""tau2's baseline: what doing nothing solves is what the benchmark says."""

from __future__ import annotations

import pytest

from posttrain import catalog
from posttrain.environments.tau2 import Service
from posttrain.environments.tau2_domains import tasks_of


def test_idling_solves_what_the_benchmark_says_of_the_first_tasks() -> None:
    """The first four of the airline, by the environment's own grading; all of them are 19 of 50."""

    def idle(seed: int) -> bool:
        service = Service(domain="airline", scripted=True)
        service.reset({"seed": seed}, 0)
        return service.step("I do not know.").solved is True

    assert [idle(seed) for seed in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("domain", ["airline", "retail", "telecom", "banking"])
def test_the_benchmark_knows_how_many_tasks_there_are(domain: str) -> None:
    benchmark = catalog.build("eval", "tau2", {"domain": domain})
    assert benchmark.source.config["size"] == len(tasks_of(domain))
