"""The codec of a user's own that the documentation shows, in a package that names it as an entry point."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compression.md"
PROGRAM = """
import torch
import hivemind
message = hivemind.serialize_torch_tensor(torch.tensor([2.0, -0.5]), 64)
assert hivemind.deserialize_torch_tensor(message).tolist() == [1, -1]
"""


def block(language: str, having: str) -> str:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (code for code in found if having in code)
    return code


def test_a_codec_is_found_by_its_entry_point(tmp_path: Path) -> None:
    metadata = tmp_path / "my_package-1.0.dist-info"
    (tmp_path / "my_package").mkdir()
    metadata.mkdir()
    definition, _ = block("python", "class SignCodec").split("\n\nregister_codec(")
    (tmp_path / "my_package" / "codecs.py").write_text("import torch\n" + definition)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    groups = tomllib.loads(block("toml", "entry-points"))["project"]["entry-points"]
    lines = [
        line
        for group, names in groups.items()
        for line in (f"[{group}]", *(f"{name} = {at}" for name, at in names.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
