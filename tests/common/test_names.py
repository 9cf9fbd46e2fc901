from __future__ import annotations

import pytest

from services.common import pages
from services.common.errors import InvalidInput
from services.common.manifest import Item, Manifest
from services.common.names import join, parse


def test_parse_is_the_inverse_of_join() -> None:
    name = join("default", "students", "fruit", "versions", "3")
    assert name == "projects/default/students/fruit/versions/3"
    assert parse(name, "students", "versions") == ("default", "fruit", "3")


@pytest.mark.parametrize(
    "name",
    ["", "fruit", "projects/default/models", "projects/default/students/x", "projects/../models/x"],
)
def test_any_other_form_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        parse(name, "models")


def test_pages_cover_a_list_once() -> None:
    items, seen, token = list(range(25)), [], ""
    while True:
        chosen, token = pages.page(items, 10, token, scope="a")
        seen += chosen
        if not token:
            break
    assert seen == items


def test_a_token_is_bound_to_its_list() -> None:
    _, token = pages.page(list(range(25)), 10, "", scope="a")
    with pytest.raises(InvalidInput):
        pages.page(list(range(25)), 10, token, scope="b")
    with pytest.raises(InvalidInput):
        pages.page([1], 10, "garbage", scope="a")
    with pytest.raises(InvalidInput):
        pages.check_size(-1)
    assert pages.check_size(10**6) == pages.MAX_SIZE


def test_a_manifest_is_canonical_and_checked() -> None:
    manifest = Manifest(("pear", "äpfel"), False, (Item("a.jpg", "0" * 64, "train", (1,)),))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.to_bytes() == Manifest.from_bytes(manifest.to_bytes()).to_bytes()
    for bad in (b"", b"[]", b'{"classes": [], "multi_label": false, "items": [{}]}'):
        with pytest.raises(InvalidInput):
            Manifest.from_bytes(bad)
    with pytest.raises(InvalidInput, match="label"):
        Manifest(("pear",), False, (Item("a", "0" * 64, "train", (1,)),)).check()
    with pytest.raises(InvalidInput, match="exactly one"):
        Manifest(("pear",), False, (Item("a", "0" * 64, "train", ()),)).check()
