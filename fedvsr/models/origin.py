"""Where initial weights come from, and under which licence: docs/explanation/licences.md.

Nothing is guessed: a file is recognised by the metadata that fedvsr wrote, by the name under which
its authors released it, or by its SHA-256. Any other file is of unknown origin.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedvsr.checked import read_metadata
from fedvsr.errors import DamagedError
from fedvsr.models.spec import RELEASED_FLOW, FlowModelConfig, ModelConfig

KEY = "weights_source"
"""Name of the record in `runs.parquet`, and in the metadata of files of weights."""
PAGE = "docs/explanation/licences.md"

SPYNET = "SpyNet, for non-commercial research (Max Planck)"
_SEPARATOR = "; "
_UNKNOWN = "weights of unknown origin"
# By the names of the files in their authors' releases.
_RELEASED = {
    r"\d{3}_VRT_\w+\.pth": "VRT, CC-BY-NC-4.0",
    r"\d{3}_RVRT_\w+\.pth": "RVRT, CC-BY-NC-4.0",
    r"IART_\w+\.pth": "IART, MIT",
    r"basicvsr_plusplus_[\w-]+\.pth": "BasicVSR++, Apache-2.0",
}
# The released name of SpyNet's file ends in the first digits of its SHA-256.
_SPYNET_DIGITS = RELEASED_FLOW.removesuffix(".pth").rpartition("-")[2]
# A record is printed, and anybody may have written it.
_MAX_PARTS, _MAX_CHARACTERS = 16, 200


def weights_source(config: ModelConfig) -> tuple[str, ...]:
    """What the files of initial weights that a section names were trained from.

    Returns:
        A phrase for each released file, `NAME: NETWORK, LICENCE`, or `NAME: weights of unknown
        origin`. Empty for fresh weights, and for those of runs that began with fresh ones.
    """
    files = [config.weights]
    if isinstance(config, FlowModelConfig):
        files.append(config.flow_weights)
    found = [part for file in files if file for part in source_of(Path(file).expanduser())]
    return tuple(dict.fromkeys(found))


def source_of(path: Path) -> tuple[str, ...]:
    """What the weights in a file were trained from; see `weights_source`.

    A file that cannot be read is judged by its name: whoever loads it says what is wrong with it.
    """
    if path.suffix == ".safetensors":
        try:
            metadata = read_metadata(path)
        except DamagedError:
            metadata = {}
        record, model = metadata.get(KEY), metadata.get("model")
        if record is None and isinstance(model, Mapping):
            # fedvsr 0.1.0 recorded only the settings.
            paths = [model.get(key) for key in ("weights", "flow_weights")]
            return tuple(_by_name(Path(str(file))) for file in paths if file)
    else:
        from fedvsr.models._checkpoint import read_entry

        record = read_entry(path, KEY)
    known = _record(record)
    if known is not None:
        return known
    return (_by_digest(path) or _by_name(path),)


def licence_note(sources: Sequence[str]) -> str:
    """A sentence for a person who uses weights that were trained from `sources`, at least one."""
    return f"the weights come from others ({joined(sources)}); see {PAGE}"


def joined(source: Sequence[str]) -> str | None:
    """The parts of a record as one text; None if there are none."""
    return _SEPARATOR.join(source) or None


def parts(text: str | None) -> tuple[str, ...]:
    """The parts of a text that `joined` made."""
    return tuple(text.split(_SEPARATOR)) if text else ()


def _record(record: object) -> tuple[str, ...] | None:
    """The record in a file's metadata; None if there is none, or none of fedvsr's making."""
    if not isinstance(record, list) or len(record) > _MAX_PARTS:
        return None
    for part in record:
        if not isinstance(part, str) or not part.isprintable() or len(part) > _MAX_CHARACTERS:
            return None
    return tuple(record)


def _by_digest(path: Path) -> str | None:
    """SpyNet's released file under any name; None for other files."""
    if path.suffix == ".safetensors" or not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{_shown(path)}: {SPYNET}" if digest.hexdigest().startswith(_SPYNET_DIGITS) else None


def _by_name(path: Path) -> str:
    released = (text for pattern, text in _RELEASED.items() if re.fullmatch(pattern, path.name))
    text = next(released, None)
    if text is None and path.name == RELEASED_FLOW:
        # An existing file with other digits has only the name.
        text = f"{_UNKNOWN}, not the released file" if path.is_file() else SPYNET
    return f"{_shown(path)}: {text or _UNKNOWN}"


def _shown(path: Path) -> str:
    """A file's name as a part of a record."""
    name = "".join(c if c.isprintable() else "?" for c in path.name)
    return name.replace(";", ",")[:80]
