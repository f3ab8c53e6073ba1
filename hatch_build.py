"""The README as the package index shows it: files of the repository are not there, so links to them become their words."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#)[^)\s]+\)")


class Readme(MetadataHookInterface):
    """Found by hatchling."""

    def update(self, metadata):
        """Set the description."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": LINK.sub(r"\1", text)}
