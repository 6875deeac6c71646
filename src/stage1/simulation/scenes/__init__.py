"""The embedded generator of street scenes: drawn photos with and without roadwork, in short videos."""

from stage1.simulation.scenes.folder import write_roadscenes
from stage1.simulation.scenes.videos import CLASSES, Video, describe_video, video_frames

__all__ = ["CLASSES", "Video", "describe_video", "video_frames", "write_roadscenes"]
