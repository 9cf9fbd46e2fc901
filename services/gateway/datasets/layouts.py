"""How images and labels lie in a tree of files: class folders, a label table, COCO or VOC
annotations."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from services.common.errors import InvalidInput
from services.gateway.datasets.entries import (
    Entry,
    Listing,
    Rejected,
    clean_label,
    path_problem,
    shown,
    split_of,
)
from services.gateway.datasets.trees import Tree, read_one

IMAGE_TYPES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLES = ("labels.csv", "metadata.csv", "labels.jsonl", "metadata.jsonl")
MAX_TABLE_BYTES = 512 << 20
MAX_XML_BYTES = 1 << 20
_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image")
_LABEL_COLUMNS = ("label", "labels", "class", "category")
_JUNK = ("__macosx", "thumbs.db", "desktop.ini")


class TreeSource:
    """Images of a tree of files. `annotations` names a COCO file or a label table; else the
    layout is found."""

    def __init__(self, tree: Tree, *, max_bytes: int, annotations: str = "") -> None:
        self._tree = tree
        self._max_bytes = max_bytes
        self._annotations = annotations

    def listing(self) -> Listing:
        """Return the entries. Raises InvalidInput where no layout fits."""
        names, refused = self._tree.names()
        names = [name for name in names if not _junk(name)]
        found = self._layout(names)
        found.rejected = refused + found.rejected
        return found

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes | Rejected]]:
        yield from self._tree.read(wanted, self._max_bytes)

    def _layout(self, names: list[str]) -> Listing:
        if self._annotations.endswith(".json"):
            return coco(self._tree, names, [self._annotations])
        if self._annotations:
            return label_table(self._tree, names, [self._annotations])
        if tables := [n for n in names if n.rsplit("/", 1)[-1].lower() in TABLES]:
            return label_table(self._tree, names, tables)
        if any(_in_folder(n, "annotations") and n.lower().endswith(".xml") for n in names):
            return voc(self._tree, names)
        files = [n for n in names if n.lower().endswith(".json")]
        if documents := [n for n in files if _is_coco(self._tree, n)]:
            return coco(self._tree, names, documents)
        return class_folders(names)


def class_folders(names: Sequence[str]) -> Listing:
    """`[split/]class/.../image.jpg`, below any number of folders that hold all the files."""
    found = Listing([])
    images = [name for name in names if _is_image(name, found.rejected)]
    root = _common_root(images)
    has_splits = any(split_of(name[len(root) :].split("/")[0]) for name in images)
    for name in images:
        parts = name[len(root) :].split("/")
        split = split_of(parts[0]) if has_splits else ""
        if has_splits and not split:
            found.rejected.append(Rejected(shown(name), "outside of train, val and test"))
            continue
        folders = parts[bool(split) : -1]
        label = clean_label(folders[0]) if folders else ""
        if label:
            found.entries.append(Entry(name, (label,), split))
        else:
            found.rejected.append(Rejected(shown(name), "not in a folder that names its class"))
    return found


def label_table(tree: Tree, names: Sequence[str], tables: Sequence[str]) -> Listing:
    """CSV or JSONL tables beside images, with columns for file, label and, if any, split.

    A label column that holds lists (JSONL), or several labels joined by `|` or `;`, makes the set
    multi-label.
    """
    collect = _Collector(names)
    for table in tables:
        folder, kind = posixpath.dirname(table), table.rsplit(".", 1)[-1].lower()
        text = _text(read_one(tree, table, MAX_TABLE_BYTES), table)
        rows = csv.DictReader(io.StringIO(text)) if kind == "csv" else _json_lines(text, table)
        split = split_of(folder.rsplit("/", 1)[-1])
        for row in rows:
            given = split_of(str(_column(row, ("split", "subset")) or "")) or split
            labels, several = _labels(_column(row, _LABEL_COLUMNS))
            collect.multi_label |= several
            collect.add(folder, str(_column(row, _FILE_COLUMNS) or ""), labels, given)
    return collect.listing()


def coco(tree: Tree, names: Sequence[str], documents: Sequence[str]) -> Listing:
    """COCO annotation files beside their images; several, such as instances_train and _val, are
    splits."""
    collect = _Collector(names, multi_label=True)
    for document in documents:
        raw = _json(read_one(tree, document, MAX_TABLE_BYTES), document)
        split = _split_in(posixpath.basename(document)) or _split_in(posixpath.dirname(document))
        try:
            categories = {int(c["id"]): str(c["name"]) for c in raw["categories"]}
            collect.classes.update(dict.fromkeys(clean_label(n) for n in categories.values()))
            labels: dict[int, dict[str, None]] = {}
            for one in raw["annotations"]:
                name = categories[int(one["category_id"])]
                labels.setdefault(int(one["image_id"]), {})[name] = None
            images = [(int(i["id"]), str(i["file_name"])) for i in raw["images"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{shown(document)} is not COCO: {error!r}"[:300]) from None
        for number, file in images:
            collect.add(posixpath.dirname(document), file, list(labels.get(number, {})), split)
    return collect.listing()


def voc(tree: Tree, names: Sequence[str]) -> Listing:
    """A Pascal VOC folder: Annotations/*.xml, JPEGImages/, and
    ImageSets/Main/{train,val,test}.txt."""
    collect = _Collector(names, multi_label=True)
    splits = _voc_splits(tree, names)
    files = [n for n in names if _in_folder(n, "annotations") and n.lower().endswith(".xml")]
    for name, data in tree.read(files, MAX_XML_BYTES):
        stem = posixpath.basename(name)[: -len(".xml")]
        try:
            file, labels = _voc_annotation(data if isinstance(data, bytes) else b"")
        except (ElementTree.ParseError, ValueError) as error:
            collect.rejected.append(Rejected(shown(name), f"not a VOC annotation: {error}"[:200]))
            continue
        folder = posixpath.dirname(posixpath.dirname(name))
        collect.add(folder, file or f"{stem}.jpg", labels, splits.get(stem, ""))
    return collect.listing()


class _Collector:
    """Matches annotated file names with the images that are there."""

    def __init__(self, names: Sequence[str], *, multi_label: bool = False) -> None:
        self.multi_label = multi_label
        self.classes: dict[str, None] = {}
        self.rejected: list[Rejected] = []
        self._entries: dict[str, Entry] = {}
        self._images = {n for n in names if n.lower().endswith(IMAGE_TYPES)}
        self._by_file: dict[str, list[str]] = {}
        for name in self._images:
            self._by_file.setdefault(posixpath.basename(name), []).append(name)

    def add(self, folder: str, file: str, labels: Sequence[str], split: str) -> None:
        """Add one annotated image, or say why not."""
        name = self._find(folder, file)
        clean = tuple(dict.fromkeys(filter(None, map(clean_label, labels))))
        problem = "there is no such image" if not name else path_problem(name)
        if not problem and name in self._entries:
            problem = "annotated twice"
        if not problem and len(clean) < len(set(labels)):
            problem = "a label of it is empty or too long"
        if problem:
            self.rejected.append(Rejected(shown(file), problem))
            return
        self.classes.update(dict.fromkeys(clean))
        self._entries[name] = Entry(name, clean, split)

    def listing(self) -> Listing:
        """Return what was collected; single-label images without a label are rejected here."""
        found = Listing([], self.multi_label, (), self.rejected)
        for entry in self._entries.values():
            if entry.labels or self.multi_label:
                found.entries.append(entry)
            else:
                found.rejected.append(Rejected(shown(entry.item_id), "it has no label"))
        found.entries.sort(key=lambda entry: entry.item_id)
        found.classes = tuple(sorted(filter(None, self.classes)))
        return found

    def _find(self, folder: str, file: str) -> str:
        """The image's path: relative to its annotations, to the root, or the only one so named."""
        tidy = posixpath.normpath(file.replace("\\", "/")).lstrip("/")
        for base in (folder, posixpath.dirname(folder), ""):
            path = posixpath.normpath(posixpath.join(base, tidy))
            if path in self._images:
                return path
        same = self._by_file.get(posixpath.basename(tidy), [])
        ending = [n for n in same if n.endswith(f"/{tidy}")] or same
        return ending[0] if len(ending) == 1 else ""


def _junk(name: str) -> bool:
    parts = name.lower().split("/")
    return any(part.startswith(".") for part in parts) or any(part in _JUNK for part in parts)


def _is_image(name: str, rejected: list[Rejected]) -> bool:
    kind = posixpath.splitext(name)[1].lower()
    problem = path_problem(name)
    if not problem and kind not in IMAGE_TYPES:
        problem = f"not an image file ({kind or 'no ending'})"
    if problem:
        rejected.append(Rejected(shown(name), problem))
    return not problem


def _common_root(names: Sequence[str]) -> str:
    """The folders above all images, with a slash, as long as a class folder is left below them."""
    if not names:
        return ""
    folders = [name.split("/")[:-1] for name in names]
    shared = list(posixpath.commonpath(["/" + "/".join(f) for f in folders]).split("/"))[1:]
    shared = [part for part in shared if part]
    if len(shared) == max(map(len, folders)):
        shared = shared[:-1]  # all images right in it: the folder itself is a class
    for at, part in enumerate(shared):
        if split_of(part):
            shared = shared[:at]
            break
    return "".join(f"{part}/" for part in shared)


def _in_folder(name: str, folder: str) -> bool:
    return folder in name.lower().split("/")[:-1]


def _split_in(text: str) -> str:
    words = text.lower().replace("-", "_").replace(".", "_").replace("/", "_").split("_")
    plain = [word.rstrip("0123456789") for word in words]
    return next(filter(None, map(split_of, plain)), "")


def _is_coco(tree: Tree, name: str) -> bool:
    """Look into the file: annotation folders hold captions and licences as JSON, too."""
    try:
        raw = _json(read_one(tree, name, MAX_TABLE_BYTES), name)
    except InvalidInput:
        return False
    return isinstance(raw, dict) and {"images", "annotations", "categories"} <= set(raw)


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput(f"{shown(name)} is not UTF-8 text", field="source") from None


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(_text(data, name))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{shown(name)} is not JSON: {error}"[:300], field="source") from None


def _json_lines(text: str, name: str) -> Iterator[dict[str, Any]]:
    for line in filter(str.strip, text.splitlines()):
        row = _json(line.encode(), name)
        if isinstance(row, dict):
            yield row


def _column(row: dict[str, Any], names: Sequence[str]) -> Any:
    lower = {str(key).strip().lower(): value for key, value in row.items() if key}
    return next((lower[name] for name in names if lower.get(name) is not None), None)


def _labels(value: Any) -> tuple[list[str], bool]:
    """Labels of a cell, and whether the cell can hold several."""
    if isinstance(value, list):
        return [str(one) for one in value], True
    text = "" if value is None else str(value)
    for mark in ("|", ";"):
        if mark in text:
            return [part.strip() for part in text.split(mark) if part.strip()], True
    return ([text] if text.strip() else []), False


def _voc_splits(tree: Tree, names: Sequence[str]) -> dict[str, str]:
    """Split by image stem, of the plain lists in ImageSets/Main (or ImageSets/Segmentation ...)."""
    lists = [n for n in names if _in_folder(n, "imagesets") and n.endswith(".txt")]
    found: dict[str, str] = {}
    for name in lists:
        if split := split_of(posixpath.basename(name)[: -len(".txt")]):
            for line in _text(read_one(tree, name, MAX_TABLE_BYTES), name).split("\n"):
                if line.strip():
                    found.setdefault(line.split()[0], split)
    return found


def _voc_annotation(data: bytes) -> tuple[str, list[str]]:
    """File name and labels of an annotation. Declarations are refused: they can make a small file
    expand without bound or read others."""
    if not data or b"\0" in data or b"<!" in data.replace(b"<!--", b""):
        raise ValueError("empty, too large, of two-byte text, or with a document type")
    root = ElementTree.fromstring(data)
    labels = dict.fromkeys((o.findtext("name") or "").strip() for o in root.iter("object"))
    return (root.findtext("filename") or "").strip(), [label for label in labels if label]
