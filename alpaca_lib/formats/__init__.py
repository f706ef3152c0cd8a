"""Other people's files and layouts -> records: found from the rows, or refused by row.

>>> table = read_table("sharegpt.jsonl.gz")
>>> read_row(table.rows[0], Options()).layout.name
'ShareGPT'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.formats.convert import Report, convert_files
    from alpaca_lib.formats.layouts import Counts, Options, Reading, read_row
    from alpaca_lib.formats.parts import Plan
    from alpaca_lib.formats.rows import Converted, convert_rows, detect_columns
    from alpaca_lib.formats.tables import Table, open_table, read_table

__getattr__, __dir__, __all__ = attach(__name__, __file__)
