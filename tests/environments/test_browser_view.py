"""The accessibility tree as text and as elements."""

from __future__ import annotations

from posttrain.environments.browser_experts import expert_action
from posttrain.environments.browser_view import Element, compact_text, elements

TREE = """RootWebArea 'Login User Task', focused
\t[14] paragraph ''
\t\t[15] LabelText ''
\t\t\tStaticText 'User, name'
\t\t[16] textbox '' value="it's", focused
\t\t\tStaticText "it's"
\t[17] LabelText ''
\t\t[18] checkbox 'a, b', checked='true'
\t\tStaticText 'a, b'
\t[19] option 'Chad', selected=False
\t[20] button 'Login'"""


def test_lines_are_elements() -> None:
    found = elements(TREE)
    assert found[0] == Element("", "RootWebArea", "Login User Task", states=("focused",))
    assert found[3] == Element("", "StaticText", "User, name")
    assert found[4] == Element("16", "textbox", "", "it's", ("focused",))
    assert found[7] == Element("18", "checkbox", "a, b", states=("checked",))
    assert found[9] == Element("19", "option", "Chad")


def test_compact_lines_say_what_matters() -> None:
    assert compact_text(elements(TREE)).splitlines() == [
        'text "User, name"',
        '[16] textbox "" = "it\'s", focused',
        '[18] checkbox "a, b", checked',
        '[19] option "Chad"',
        '[20] button "Login"',
    ]


def test_experts_read_goal_and_elements() -> None:
    page = elements(TREE)
    assert expert_action("click-checkboxes", "Select a, b and click Submit.", page) == "click('18')"  # takes it away
    assert expert_action("click-button", 'Click on the "Login" button.', page) == "click('20')"
    assert expert_action("click-button", 'Click on the "Logout" button.', page) is None
    assert expert_action("unknown-task", "Win.", page) is None
