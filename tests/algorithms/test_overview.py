"""The README's table of algorithms is the one that the code gives."""

from pathlib import Path

from posttrain import catalog
from posttrain.algorithms.overview import markdown, rows

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_table() -> None:
    assert markdown() in README.read_text(), (
        "python -c 'from posttrain.algorithms.overview import *; print(markdown())'"
    )


def test_every_algorithm_has_its_row_and_its_paper() -> None:
    found = rows()
    missing = {member.name for member in catalog.members("algorithms")} - {row.name for row in found}
    assert missing <= {"terms"}, "only algorithms that need settings have no row"
    assert all(row.paper for row in found)
