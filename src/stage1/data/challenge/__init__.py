"""What the StreetVision client sends: four levels of distortion, then a 224 px JPEG; seeded, in memory or as a folder."""

from stage1.data.challenge.agreement import DESCRIPTION, agreeing
from stage1.data.challenge.distort import CLIENT, GENERATOR, LEVELS, Client, distort, jpeg, squashed
from stage1.data.challenge.folder import Made, Task, tasks_for, write_challenges, write_folder
from stage1.data.challenge.seeded import MIXTURE, Challenge, Origin, challenge, level_of

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
