"""An algorithm written in a recipe: terms made of parts by name, no Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

from posttrain import catalog
from posttrain.catalog import Mistake, SettingsError, show, unknown_key
from posttrain.errors import did_you_mean
from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source, parts
from posttrain.estimator.assemble import ROLES, parts_of
from posttrain.estimator.distillation import DivergenceTerm
from posttrain.estimator.entropy import Entropy, EntropyTerm
from posttrain.estimator.pairing import BestAgainstWorst, Neighbours, Ranked
from posttrain.estimator.plan import Pairing

_NESTED = {getattr(parts, role.capitalize()): role for role in ROLES}
"""The protocol of a role -> the role, for parts that hold another part."""

_ENTROPY = parts.part_name(Entropy)

Path = tuple[str | int, ...]


PAIRINGS: dict[str, Pairing] = {
    "neighbours": Neighbours(),
    "best_against_worst": BestAgainstWorst(),
    "ranked": Ranked(),
}


def terms(
    *,
    terms: list[dict[str, Any]],
    pairing: Literal["neighbours", "best_against_worst", "ranked"] | None = None,
) -> Algorithm:
    """grad = sum_terms E_source[weight * mask * (1 / denominator) * advantage * grad pi] (arXiv 2509.04419, eq. 6).

    Each term has a `source` and, where the defaults (supervised fine-tuning) do not fit, its parts by role: where,
    mask, denominator, advantage, likelihood, aggregation, weight. A part is its name, or a mapping of its `name` and
    constants (which may be parts again); a weight may be a number. The likelihood `entropy` makes an entropy bonus, and
    forward_kl, reverse_kl, jensen_shannon and adaptive a distillation (arXiv 2306.13649, eq. 2): these have a weight
    and an aggregation only. `term` names the term in the metrics (default: its source). pairing: how each prompt's
    rollouts become pairs (`estimator.pairing`), for parts that compare two.
    SettingsError: all that is wrong, each with its term, role, value and what is allowed.
    """
    found: list[Mistake] = []
    built = [_term(written, ("terms", index), found) for index, written in enumerate(terms)]
    if not terms:
        found.append(Mistake(("terms",), "[] is not allowed; allowed: a list of one or more terms"))
    for index, term in enumerate(built):
        if term is not None and term.name in {before.name for before in built[:index] if before is not None}:
            text = f"{term.name!r} is the name of an earlier term; allowed: a `term` of its own for each"
            found.append(Mistake(("terms", index, "term"), text))
    if found:
        raise SettingsError(found)
    made = tuple(term for term in built if term is not None)
    anchored = any(getattr(term.describe().get("advantage"), "anchored", False) for term in made)
    return Algorithm("terms", made, Plan(None if pairing is None else PAIRINGS[pairing], mismatched=anchored))


def _term(
    written: Mapping[str, Any], path: Path, found: list[Mistake]
) -> PolicyTerm | EntropyTerm | DivergenceTerm | None:
    """One term; None where it has mistakes, which go to `found`."""
    bonus, distils = written.get("likelihood") == _ENTROPY, _is_divergence(written.get("likelihood"))
    roles = (*("likelihood",) * distils, "aggregation", "weight") if bonus or distils else ROLES
    before, allowed = len(found), {"source", "term", "likelihood", *roles}
    for key, value in written.items():
        if key not in allowed:
            found.append(Mistake((*path, key), unknown_key(key, value, allowed)))
    source, sources = written.get("source"), [str(one) for one in Source]
    if source not in sources:
        wrong = "missing" if source is None else f"{show(source)} is not allowed"
        found.append(Mistake((*path, "source"), f"{wrong}; {did_you_mean(str(source), sources)}"))
    name = written.get("term", source)
    if not isinstance(name, str) and "term" in written:
        found.append(Mistake((*path, "term"), f"{show(name)} is not allowed; allowed: text"))
    made = {role: _part(role, written[role], (*path, role), found) for role in roles if role in written}
    if len(found) > before:
        return None
    if distils:
        return DivergenceTerm(source=Source(str(source)), divergence=made.pop("likelihood"), name=str(name), **made)
    kind: type[PolicyTerm | EntropyTerm] = EntropyTerm if bonus else PolicyTerm
    return kind(source=Source(str(source)), name=str(name), **made)


def _is_divergence(written: Any) -> bool:
    """Whether a likelihood is one of whole distributions."""
    name = written.get("name") if isinstance(written, Mapping) else written
    return isinstance(name, str) and hasattr(parts_of("likelihood").get(name), "gradient")


def _part(role: str, written: Any, path: Path, found: list[Mistake]) -> Any:
    """The part that plays `role`; None where it has mistakes, which go to `found`."""
    if role == "weight" and isinstance(written, int | float) and not isinstance(written, bool):
        written = {"name": "always", "value": written}
    constants = {"name": written} if isinstance(written, str) else written
    allowed = parts_of(role)
    if not isinstance(constants, Mapping) or not isinstance(constants.get("name"), str):
        number = "a number, " if role == "weight" else ""
        text = f"{show(written)} is not allowed; allowed: {number}a name, or a mapping of `name` and constants; names: "
        found.append(Mistake(path, text + ", ".join(sorted(allowed))))
        return None
    constants = dict(constants)
    name = constants.pop("name")
    if name not in allowed:
        names = [*allowed, _ENTROPY] if role == "likelihood" else list(allowed)
        found.append(Mistake(path, f"{show(name)} is not a known {role}; {did_you_mean(name, names)}"))
        return None
    before = len(found)
    hints = {key: hint for key, hint in get_type_hints(allowed[name]).items() if key in constants}
    inner = {key: _NESTED[hint] for key, hint in hints.items() if hint in _NESTED}
    made = {key: _part(nested, constants.pop(key), (*path, key), found) for key, nested in inner.items()}
    checked, mistakes = catalog.validate_call(allowed[name], constants, f"{role} {name!r}", keyword_only=False)
    found += [Mistake((*path, *mistake.path), mistake.text) for mistake in mistakes]
    try:
        return allowed[name](**checked, **made) if len(found) == before else None
    except ValueError as error:
        found.append(Mistake(path, str(error)))
        return None
