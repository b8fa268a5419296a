"""The quality report of a dataset: ``quality.json`` and a page, ``quality.html``."""

from tokenwm.data.quality_report.report import (
    PAGE_NAME,
    REPORT_NAME,
    read,
    rewrite,
    with_checksums,
    write,
)

__all__ = ["PAGE_NAME", "REPORT_NAME", "read", "rewrite", "with_checksums", "write"]
