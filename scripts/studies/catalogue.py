"""Every study by name."""

from __future__ import annotations

from studies.distill import DISTILL
from studies.dr_po import DR_PO
from studies.hindsight import HINDSIGHT
from studies.hpt import HPT
from studies.hypo import HYPO
from studies.j_bond import J_BOND
from studies.negotiation import NEGOTIATION
from studies.oreal import OREAL
from studies.osp import OSP
from studies.p3o import P3O
from studies.reward_models import REWARD_MODELS
from studies.study import Study
from studies.text_world import TEXT_WORLD
from studies.token_model import TOKEN_MODEL
from studies.ui_s1 import UI_S1
from studies.web import WEB

_PAPERS = (HPT, OREAL, OSP, P3O, HYPO, DR_PO, J_BOND, DISTILL, UI_S1)
STUDIES: dict[str, Study] = {
    study.name: study for study in (*_PAPERS, REWARD_MODELS, TOKEN_MODEL, TEXT_WORLD, WEB, NEGOTIATION, HINDSIGHT)
}
