"""Rewards: functions found by name that grade trajectories in processes that can be killed.

A reward is `def name(<inputs>, *, <settings>) -> float | None` in a file of that name (bundled ones lie in `rewards/`).
1.0 is the full mark and None means "cannot grade"; `Graded` is a number with the answer that was read. TRL's signature,
over lists, is taken too (`signature.RewardInputs`), and `trl.<name>` names a reward of trl.rewards; lists hold one
trajectory, or where the file says WHOLE_GROUPS = True, all that one prompt has. DEADLINE_SECONDS in a file is the
deadline of its calls where a recipe says none. A call that raises,
hangs, runs out of memory or kills its process leaves its trajectory ungraded and is counted; it costs no other call its
value. Nothing here imports torch.
"""

from posttrain.reward.graded import Graded, Measured
from posttrain.reward.grader import Grader
from posttrain.reward_specs import RewardSpec

__all__ = ["Graded", "Grader", "Measured", "RewardSpec"]
