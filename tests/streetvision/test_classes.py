"""Which class is roadwork: by its name, in one place, and never by position where the names say otherwise."""

from __future__ import annotations

import pytest

from stage1.errors import ConfigError
from stage1.streetvision.classes import CLIENT_LABELS, client_labels, reads_as, require_order


@pytest.mark.parametrize(
    "name, meaning",
    [
        ("roadwork", 1),
        ("Roadwork", 1),
        ("ROAD_WORKS", 1),
        ("road-work", 1),
        ("none", 0),
        ("None", 0),
        ("no roadwork", 0),
        ("not_roadwork", 0),
        ("without roadworks", 0),
        ("day", None),
        ("roadside", None),
        ("nonexistent", None),
        ("1", None),
    ],
)
def test_names_are_read_whatever_their_writing(name, meaning):
    assert reads_as(name) == meaning


@pytest.mark.parametrize(
    "classes", [("roadwork", "none"), ("Road works", "clear"), ("clear", "None"), ("roadwork", "x")]
)
def test_the_other_order_is_refused(classes):
    with pytest.raises(ConfigError, match=rf"runs/x: its class 0 is {classes[0]}.*data.classes=\[{classes[1]},"):
        require_order(classes, "runs/x")
    for positive in (None, *classes):  # saying so does not turn the model round
        with pytest.raises(ConfigError):
            client_labels(classes, "runs/x", positive)


@pytest.mark.parametrize("classes", [("none", "roadwork"), ("clear", "RoadWorks"), ("None", "cones")])
def test_names_that_tell_the_order_get_the_labels_of_the_client(classes):
    require_order(classes, "x")
    assert (
        client_labels(classes, "x") == client_labels(classes, "x", classes[1]) == CLIENT_LABELS == ("None", "Roadwork")
    )


def test_names_that_do_not_tell_need_a_word():
    with pytest.raises(ConfigError, match=r"neither 'day' nor 'night'.*--positive night.*--keep-names"):
        client_labels(("day", "night"), "x")
    assert client_labels(("day", "night"), "x", "night") == CLIENT_LABELS
    with pytest.raises(ConfigError, match="is class 0 of x"):
        client_labels(("day", "night"), "x", "day")
    with pytest.raises(ConfigError, match="--positive dusk: is no class of x; these are day, night"):
        client_labels(("day", "night"), "x", "dusk")
    require_order(("day", "night"), "x")  # class 1 is the positive one, unless the names say otherwise
    require_order(("roadwork", "none", "other"), "x")
