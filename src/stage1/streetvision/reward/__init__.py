"""What the client pays: its rule answer by answer, the expected reward (of rates, by level), and the threshold."""

from stage1.streetvision.reward.expected import expected_reward, mcc_of_table
from stage1.streetvision.reward.levels import DEFAULT, MIXTURE, OPEN, Gain, LevelRates, LevelReward
from stage1.streetvision.reward.rule import ALPHA, Played, moving_average, play, reward_formula, simulated
from stage1.streetvision.reward.threshold import reward_threshold

__all__ = [
    "ALPHA",
    "DEFAULT",
    "MIXTURE",
    "OPEN",
    "Gain",
    "LevelRates",
    "LevelReward",
    "Played",
    "expected_reward",
    "mcc_of_table",
    "moving_average",
    "play",
    "reward_formula",
    "reward_threshold",
    "simulated",
]
