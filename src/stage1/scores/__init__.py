"""Scores, the hinge between models and certificates: the arrays, their files, what a label and a column mean."""

from typing import TYPE_CHECKING

from stage1.late import names

if TYPE_CHECKING:
    from stage1.scores.role_files import read_ids, read_role, write_role
    from stage1.scores.score_files import read_scores, write_scores
    from stage1.scores.scores import ROLES, Scores, Values, appearance, from_probabilities, look_like_probabilities
else:
    __getattr__ = names(
        __name__,
        role_files="read_ids read_role write_role",
        score_files="read_scores write_scores",
        scores="ROLES Scores Values appearance from_probabilities look_like_probabilities",
    )

__all__ = [
    "ROLES",
    "Scores",
    "Values",
    "appearance",
    "from_probabilities",
    "look_like_probabilities",
    "read_ids",
    "read_role",
    "read_scores",
    "write_role",
    "write_scores",
]
