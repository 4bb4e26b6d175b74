"""Makes the pages readable in two places: as files of the repository, and as the documentation built from them.

In the repository a link to another page is a link to its file. Here such a link leads to the built page, and a link to
another file (a configuration in ``conf/``) to a copy of it. A link to a missing file is a warning.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

logger = logging.getLogger(__name__)

#: Files outside docs/ that a page here includes whole.
INCLUDED = {"README.rst": "readme", "README.zh.rst": "readme.zh", "CHANGELOG.rst": "changes"}


class RelativeLinks(SphinxTransform):
    """Turns links to files into links to pages, and drops the pages' own contents lists: the theme shows them."""

    # After docutils has resolved the names of links and made the contents, before Sphinx collects what to copy.
    default_priority = 800

    def apply(self, **kwargs: object) -> None:
        for topic in list(self.document.findall(nodes.topic)):
            if "contents" in topic["classes"]:
                topic.parent.remove(topic)
        if self.env.docname in INCLUDED.values():
            for image in self.document.findall(nodes.image):
                image["uri"] = image["uri"].removeprefix("docs/")
        for reference in list(self.document.findall(nodes.reference)):
            uri = reference.get("refuri", "")
            if uri and "://" not in uri and not uri.startswith(("#", "mailto:")):
                reference.replace_self(self._link(uri, reference))

    def _link(self, uri: str, reference: nodes.reference) -> nodes.Node:
        docs = Path(self.env.srcdir)
        root = docs.parent
        # What is included from the root has links from there.
        start = root if self.env.docname in INCLUDED.values() else docs
        uri, _, section = uri.partition("#")
        target = (start / uri).resolve()
        inner = nodes.inline("", "", *reference.children)
        page = INCLUDED.get(target.name) if target.parent == root else None
        if page is None and target.parent == docs and target.suffix == ".rst":
            page = target.stem
        if page is not None and section:
            return nodes.reference("", "", inner, internal=True, refuri=f"{page}.html#{section}")
        if page is not None:
            return addnodes.pending_xref(
                "",
                inner,
                refdomain="std",
                reftype="doc",
                reftarget=f"/{page}",
                refdoc=self.env.docname,
                refexplicit=True,
                refwarn=True,
            )
        if target.is_dir():
            return inner  # of which there is no copy
        if not target.is_file():
            logger.warning("a link leads to no file: %s", uri, location=reference)
            return inner
        relative = target.relative_to(docs) if target.is_relative_to(docs) else Path("..") / target.relative_to(root)
        return addnodes.download_reference("", "", inner, reftarget=f"/{relative}", refdoc=self.env.docname)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_transform(RelativeLinks)
    return {"parallel_read_safe": True}
