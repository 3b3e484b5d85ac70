"""What mkdocs makes the site of: the repository's own files in their own places.

So a link that is right in the repository is right on the site, and `mkdocs build --strict`
checks every one of them, those from docs/ to README, code and deploy/ too.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("*.md", "LICENSE", "docs/**/*", "benchmarks/*.md", "deploy/*", "laura/serve/*.py")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put them in the place of what mkdocs found in docs/; the theme's files stay."""
    for one in list(files):
        if one.abs_src_path and Path(one.abs_src_path).is_relative_to(ROOT / "docs"):
            files.remove(one)
    for path in sorted({path for pattern in SHOWN for path in ROOT.glob(pattern)}):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
