"""What the StreetVision client sends: four levels of distortion, then a 224 px JPEG; seeded, in memory or as files."""

from stage1.data.corruptions import (
    CLIENT,
    GENERATOR,
    LEVELS,
    MIXTURE,
    Challenge,
    Client,
    Origin,
    challenge,
    distort,
    jpeg,
    level_of,
    squashed,
)
from stage1.streetvision.challenge.folder import (
    DESCRIPTION,
    Made,
    Task,
    agreeing,
    tasks_for,
    write_challenges,
    write_folder,
)

__all__ = [
    "CLIENT",
    "DESCRIPTION",
    "GENERATOR",
    "LEVELS",
    "MIXTURE",
    "Challenge",
    "Client",
    "Made",
    "Origin",
    "Task",
    "agreeing",
    "challenge",
    "distort",
    "jpeg",
    "level_of",
    "squashed",
    "tasks_for",
    "write_challenges",
    "write_folder",
]
