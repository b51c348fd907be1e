"""A name in a recipe -> an object in a file.

The name is the stem of the file and of the function or class in it (a recipe's is its path in `recipes/`, as in
"tiny/grpo"); nothing is registered. Kinds are folders:
`algorithms` and `environments` (built in: posttrain/<kind>/), `rewards`, `eval` (benchmarks), `recipes`. Each may also
lie in a folder of POSTTRAIN_PATH, which wins. This package's `__path__` spans those folders, itself (where a wheel
puts the bundled members) and the checkout, so that members are ordinary modules: picklable, and importable by spawned
processes, which inherit the environment variable.
"""

# Imported before __path__ grows: a plug-in folder must not shadow this package's own modules.
from posttrain.catalog.lookup import find, install_command, recipe_path
from posttrain.catalog.members import Member, members, recipe_name
from posttrain.catalog.mistakes import Mistake, SettingsError, from_validation, show, unknown_key
from posttrain.catalog.paths import NOUNS, search_path
from posttrain.catalog.settings import build, check, validate, validate_call

__all__ = [
    "NOUNS",
    "Member",
    "Mistake",
    "SettingsError",
    "build",
    "check",
    "find",
    "from_validation",
    "install_command",
    "members",
    "recipe_name",
    "recipe_path",
    "show",
    "unknown_key",
    "validate",
    "validate_call",
]

__path__ = search_path()
