"""The published comparisons with peers: complete, recent and close. Each comparison checks that its row is there."""

from __future__ import annotations

import json

import pytest

from tests.algorithms.names import NAMES
from tests.algorithms.parity import LARGEST, PUBLISHED, peer_version, published

PEERS = {
    "cispo": {"trl", "verl"},
    "dapo": {"trl", "verl"},
    "distill": {"trl"},
    "dpo": {"trl"},
    "dppo": {"verl"},
    "dr_grpo": {"trl", "verl"},
    "grpo": {"trl", "verl"},
    "gspo": {"trl", "verl"},
    "kto": {"trl"},
    "orpo": {"trl"},
    "ppo": {"verl"},
    "reinforce": {"verl"},
    "reinforce_pp": {"verl"},
    "rloo": {"trl", "verl"},
    "simpo": {"trl"},
}
"""Which peers have a pure loss of the algorithm."""


def test_every_algorithm_that_a_peer_has_is_compared() -> None:
    found = {(name, peer) for name, peer, _ in published()}
    wanted = {(name, peer) for name, peers in PEERS.items() for peer in peers}
    assert wanted <= found, f"not in {PUBLISHED.name}: {sorted(wanted - found)}; run scripts/parity"
    assert {name for name, _ in found} <= {*NAMES, "terms"}


def test_no_difference_is_large() -> None:
    assert all(0 <= difference <= LARGEST for difference in published().values())


@pytest.mark.parametrize("peer", ["trl", "verl"])
def test_published_versions_are_the_installed_ones(peer: str) -> None:
    versions = {row["version"] for row in json.loads(PUBLISHED.read_text()) if row["peer"] == peer}
    assert versions == {peer_version(peer)}
