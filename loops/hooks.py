"""Hooks that `--hooks` selects by name.

To add one, write a subclass of `loops.hook.Hook` in a file of its own and add it to `HOOKS`.
"""

from loops.hook import Hook
from loops.stage_norms import StageNorms

HOOKS: dict[str, type[Hook]] = {
    "stage_norms": StageNorms,
}


def make_hooks(names: tuple[str, ...]) -> list[Hook]:
    """Makes hooks by their names.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in HOOKS:
            raise ValueError(f"unknown hook {name!r}; known hooks: {', '.join(HOOKS)}")
    return [HOOKS[name]() for name in names]
