"""How some MiniWoB++ tasks are done, read from what a policy reads: the goal, and the elements on the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from posttrain.environments.browser_view import Element

Expert = Callable[[str, Sequence[Element]], str | None]
"""From (goal, elements) to the next action; None where it does not see one."""


def expert_action(task: str, goal: str, page: Sequence[Element]) -> str | None:
    """The next action towards the goal; None where the task has no expert, or it does not see one."""
    expert = EXPERTS.get(task)
    return None if expert is None else expert(goal, page)


def _with(page: Sequence[Element], *roles: str, name: str | None = None) -> Iterator[Element]:
    """Elements of these roles, and of this name."""
    return (one for one in page if one.id and one.role in roles and (name is None or one.name == name))


def _click(found: Iterator[Element]) -> str | None:
    """A click on the first of them."""
    return next((f"click('{one.id}')" for one in found), None)


def _quoted(goal: str) -> list[str]:
    return re.findall(r'"([^"]*)"', goal)


def _click_button(goal: str, page: Sequence[Element]) -> str | None:
    """`Click on the "ok" button.`, `Click button ONE.`, `Click the button.`"""
    named = _quoted(goal) or re.findall(r"[Cc]lick button (\w+)", goal)
    return _click(_with(page, "button", name=named[0] if named else None))


def _click_sequence(goal: str, page: Sequence[Element]) -> str | None:
    """`Click button ONE, then click button TWO.`: a button that was clicked has the focus."""
    first, second = re.findall(r"click button (\w+)", goal.lower())
    clicked = any("focused" in one.states for one in _with(page, "button", name=first.upper()))
    return _click(_with(page, "button", name=(second if clicked else first).upper()))


def _click_dialog(goal: str, page: Sequence[Element]) -> str | None:
    """`... by clicking the "x".`, `Click the button in the dialog box labeled "OK".`: the cross is called Close."""
    (name,) = _quoted(goal)
    return _click(_with(page, "button", name="Close" if name == "x" else name))


def _click_tab(goal: str, page: Sequence[Element]) -> str | None:
    """`Click on Tab #1.`"""
    return _click(_with(page, "link", name=goal.removeprefix("Click on ").rstrip(".")))


def _click_widget(goal: str, page: Sequence[Element]) -> str | None:
    """`Click on a "radio" widget.`: text fields and text areas read alike but for the text below a text area."""
    (kind,) = _quoted(goal)
    return _click(_with(page, "textbox" if kind in ("text", "textarea") else kind))


def _focus_text(goal: str, page: Sequence[Element]) -> str | None:
    """`Focus into the textbox.`, `Focus into the 2nd input textbox.`"""
    place = re.search(r"(\d)(?:st|nd|rd|th)", goal)
    return _click(iter([*_with(page, "textbox")][int(place[1]) - 1 if place else 0 :]))


def _select(goal: str, page: Sequence[Element]) -> str | None:
    """`Select a, b and click Submit.`: check boxes, or one radio button."""
    wanted = goal.removeprefix("Select ").removesuffix(" and click Submit.").split(", ")
    boxes = [one for one in _with(page, "checkbox", "radio") if (one.name in wanted) != ("checked" in one.states)]
    return _click(iter(boxes)) or _click(_with(page, "button", name="Submit"))


def _type(goal: str, page: Sequence[Element]) -> str | None:
    """`Enter "Myron" into the text field and press Submit.`, and the like: quoted texts into fields, in order.

    One text goes into every field; then the button.
    """
    texts, fields = _quoted(goal), [*_with(page, "textbox")]
    texts = texts * len(fields) if len(texts) == 1 else texts
    for text, place in zip(texts, fields, strict=False):
        if len(place.value or "") != len(text):  # a password reads as dots
            return f"fill('{place.id}', '{text}')"
    return _click(_with(page, "button"))


EXPERTS: dict[str, Expert] = {
    "click-button": _click_button,
    "click-button-sequence": _click_sequence,
    "click-checkboxes": _select,
    "click-dialog": _click_dialog,
    "click-dialog-2": _click_dialog,
    "click-option": _select,
    "click-tab": _click_tab,
    "click-test": _click_button,
    "click-test-2": _click_button,
    "click-widget": _click_widget,
    "enter-password": _type,
    "enter-text": _type,
    "enter-text-dynamic": _type,
    "focus-text": _focus_text,
    "focus-text-2": _focus_text,
    "login-user": _type,
}
"""Tasks and their experts."""
