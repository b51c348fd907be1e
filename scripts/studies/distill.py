"""Distillation on a fixed set of the teacher's completions, on fresh ones, and on the student's own."""

from __future__ import annotations

from studies import measure
from studies.common import HeldOut, base, from_scratch, rows, sampling
from studies.sampled import Sampled
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Reverse, Rows

PARTS, STEPS = 3, 100
TASK = Reverse(3, 6)
ORACLE = from_scratch(Rows(TASK, "train", 3000, stream=2), steps=250)
TEACHER = from_scratch(Rows(TASK, "train", 400, stream=3), steps=120)
STUDENT = from_scratch(Rows(Reverse(3, 4), "train", 400, stream=1), steps=60)
PROMPTS = Rows(TASK, "train", 3000)
FIXED = Sampled(TEACHER, Rows(TASK, "train", 64))
FRESH = Sampled(TEACHER, PROMPTS)
_FIXED, _FRESH = "off-policy, 64 fixed completions", "off-policy, 3,000 completions"
HELD_OUT = HeldOut(Rows(TASK, "held_out", 200))


def _measure(run: Finished) -> Figures:
    """The distances after each part; the oracle's and the teacher's completions are the same for every arm."""
    oracle, teacher = (measure.Loaded.of(made.path(run.context)) for made in (ORACLE, TEACHER))
    said = [measure.sequences(HELD_OUT.play(run.context, model, 2)) for model in (oracle, teacher)]
    gold, proxy = [], []
    for stage in [path / "final" for path in run.stages] or [run.start]:
        student = measure.Loaded.of(stage).model
        gold.append(measure.divergence(said[0], oracle.model, student))
        proxy.append(measure.divergence(said[1], teacher.model, student))
    distances = {"gold": gold[-1], "proxy": proxy[-1], "gold_rise": gold[-1] - min(gold)}
    return HELD_OUT.solved(run) | distances


def _off_policy(source: Sampled) -> tuple[Tree, ...]:
    algorithm = {"name": "distill", "divergence": "forward_kl", "on_policy": 0.0, "off_policy": 1.0}
    return ({"algorithm": algorithm, "demonstrations": rows(source)},) * PARTS


def _on_policy() -> tuple[Tree, ...]:
    algorithm = {"name": "distill", "divergence": "forward_kl"}
    return (sampling(group_size=1) | {"algorithm": algorithm, "prompts": rows(PROMPTS)},) * PARTS


DISTILL = Study(
    name="distill",
    title="Distillation: on the student's own completions, or on a fixed set of the teacher's",
    paper="A fixed set of the teacher's completions lets the student overfit to it, nearer to the teacher there and "
    "further from the truth ('teacher hacking'); data generated while training does not, and on-policy distillation "
    "does best (arXiv 2502.02671; GKD, arXiv 2306.13649).",
    setting="Words of three to six letters are to be spelt backward; the oracle has learnt it, the teacher half, the "
    "student short words only; all distances are KL over the whole vocabulary on held-out words.",
    equal=f"the student's start, {PARTS} x {STEPS} steps of 32 completions, forward KL to the teacher.",
    base=base(
        {"model": {"path": STUDENT}, "teacher": {"path": TEACHER}}, steps=STEPS, prompts_per_step=32, learning_rate=1e-3
    ),
    arms=(
        Arm("student's start", ()),
        Arm(_FIXED, _off_policy(FIXED)),
        Arm(_FRESH, _off_policy(FRESH)),
        Arm("on-policy", _on_policy()),
    ),
    figures={
        "proxy": Figure("KL from the teacher, nats", ".2f"),
        "gold": Figure("KL from the oracle, nats", ".2f"),
        "gold_rise": Figure("the same above its lowest", ".2f"),
        "sampled": Figure("solved, temperature 1", ".1%"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=(
        Claim("the fixed set ends further from the oracle than fresh completions", "gold", _FIXED, _FRESH, ratio=True),
        Claim("the fixed set ends further from the oracle than on-policy", "gold", _FIXED, "on-policy", ratio=True),
        Claim("the distance to the oracle rises on the fixed set", "gold_rise", _FIXED),
        Claim("on-policy solves more than the fixed set", "sampled", "on-policy", _FIXED),
        Claim("on-policy solves more than fresh completions", "sampled", "on-policy", _FRESH),
    ),
    measure=_measure,
)
