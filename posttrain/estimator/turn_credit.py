"""Credit to the turns of an episode: returns of what turns earned, against other turns of the same group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.gae import discounted
from posttrain.estimator.parts import Advantage

Peers = Literal["none", "group", "turn", "state"]


@dataclass(frozen=True)
class TurnReturn:
    """The return of a turn, A_k = sum_{j>=k} gamma^(j-k) r_j, against its peers: (A_k - mean) / (std + epsilon).

    r_j is what turn j earned (`turn_rewards`). peers: the turns of the group that it is compared with: those of the
    same number ("turn"; UI-S1, arXiv 2509.11543, eq. 10), those that acted in the same state ("state"; GiGPO, arXiv
    2505.10978, eq. 6 and 7), all ("group"), or none, which leaves the return as it is. A turn counts once, however long
    it is. The deviation is the sample's; a turn without peers, or whose peers all have the same return, has 0.

    Returns end with a turn that is `off_path`, whose consequences are not its own: with its reward (UI-S1's eq. 9), or
    before it unless `through_mistakes` (UI-S1's code): then it counts for itself alone.
    """

    gamma: float = 1.0
    peers: Peers = "turn"
    std: bool = True
    epsilon: float = 1e-6
    through_mistakes: bool = True
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    def __post_init__(self) -> None:
        """ValueError outside 0 <= gamma <= 1 or for unknown peers."""
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; allowed: 0 to 1")
        if self.peers not in ("none", "group", "turn", "state"):
            raise ValueError(f"peers is {self.peers!r}; allowed: none, group, turn, state")

    @property
    def needs(self) -> frozenset[str]:
        """Rewards, and groups where turns are compared."""
        return frozenset({"rewards"} if self.peers == "none" else {"rewards", "groups"})

    @property
    def formula(self) -> str:
        """The return, less its peers' mean."""
        returned = f"sum_{{j>=k}} {self.gamma:g}^(j-k) r_j"
        if self.peers == "none":
            return returned
        centred = f"({returned} - mean_{self.peers})"
        return f"{centred} / (std_{self.peers} + {self.epsilon:g})" if self.std else centred

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]: of each token its turn's; 0 where ungraded."""
        own, turn = batch.sequence_index, read.field(batch, "turn_index")
        starts = torch.cat([torch.ones_like(own[:1], dtype=torch.bool), (own.diff() != 0) | (turn.diff() != 0)])
        step = torch.cumsum(starts, 0) - 1
        returns = self._returns(batch, starts)
        graded = batch.graded[own[starts]]
        if self.peers != "none":
            returns = self._compared(returns, self._bucket(batch, starts), graded)
        return torch.where(graded, returns, 0.0).to(batch.reward.dtype)[step]

    def _returns(self, batch: TokenBatch, starts: Tensor) -> Tensor:
        """[K] of the turns, in float64."""
        sequence = batch.sequence_index[starts]
        goes_on = torch.zeros_like(sequence, dtype=torch.bool)
        goes_on[:-1] = sequence[1:] == sequence[:-1]
        off_path = read.field(batch, "off_path")[starts]
        goes_on &= ~off_path
        if not self.through_mistakes:
            goes_on[:-1] &= ~off_path[1:]
        return discounted(read.field(batch, "turn_rewards")[starts].double(), self.gamma * goes_on.double())

    def _bucket(self, batch: TokenBatch, starts: Tensor) -> Tensor:
        """A number [K] that a turn has in common with its peers."""
        group = batch.group_index[batch.sequence_index[starts]]
        if self.peers == "group":
            return group
        name = "turn_index" if self.peers == "turn" else "state_index"
        within = read.field(batch, name)[starts]
        number = torch.arange(len(group), device=group.device)
        alone = torch.where(within < 0, number, -1)  # a state without a name has no peers
        return torch.unique(torch.stack([group, within, alone]), dim=1, return_inverse=True)[1] if len(group) else group

    def _compared(self, returns: Tensor, bucket: Tensor, graded: Tensor) -> Tensor:
        """The returns [K] against the mean, and the deviation, of the graded turns of their bucket."""
        number = int(bucket.max()) + 1 if len(bucket) else 0
        weight = graded.to(returns.dtype)

        def total(values: Tensor) -> Tensor:
            return values.new_zeros(number).index_add(0, bucket, weight * values)

        count = total(torch.ones_like(returns))
        centred = returns - (total(returns) / count.clamp(min=1))[bucket]
        low = torch.full_like(count, torch.inf).scatter_reduce(0, bucket[graded], returns[graded], "amin")
        high = torch.full_like(count, -torch.inf).scatter_reduce(0, bucket[graded], returns[graded], "amax")
        centred = torch.where((high > low)[bucket], centred, 0.0)
        if not self.std:
            return centred
        deviation = (total(centred**2) / (count - 1).clamp(min=1)).sqrt()
        return centred / (deviation + self.epsilon)[bucket]


@dataclass(frozen=True)
class LastTurn:
    """What the last turn of an episode earned, against its group's: (r_T - mean_group) / (std_group + epsilon).

    UI-S1's episode advantage as printed (arXiv 2509.11543, eq. 11: R(tau) is R_T).
    """

    std: bool = True
    epsilon: float = 1e-6
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def formula(self) -> str:
        """GRPO's, of the last turn."""
        centred = "r_T - mean_group r_T"
        return f"({centred}) / (std_group r_T + {self.epsilon:g})" if self.std else centred

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        own = batch.sequence_index
        last = torch.cat([own[1:] != own[:-1], torch.ones_like(own[:1], dtype=torch.bool)])
        earned = torch.zeros_like(batch.reward)
        earned[own[last]] = read.field(batch, "turn_rewards")[last]
        return GroupRelative(self.std, self.epsilon)(batch.replace(reward=earned))


@dataclass(frozen=True)
class EpisodeAndTurn:
    """A = A_episode + weight A_turn (GiGPO, arXiv 2505.10978, eq. 8; UI-S1, arXiv 2509.11543, eq. 12)."""

    episode: Advantage = field(default_factory=GroupRelative)
    turn: Advantage = field(default_factory=TurnReturn)
    weight: float = 1.0
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def needs(self) -> frozenset[str]:
        """Both parts'."""
        return self.episode.needs | self.turn.needs

    @property
    def formula(self) -> str:
        """The sum."""
        factor = "" if self.weight == 1 else f"{self.weight:g} "
        return f"A_E + {factor}A_T, A_E = {self.episode.formula}, A_T = {self.turn.formula}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        episode = self.episode(batch)
        episode = batch.broadcast(episode) if episode.shape == batch.reward.shape else episode
        return episode + self.weight * self.turn(batch)
