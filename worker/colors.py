"""The colours of queries, the same in overlay, report and exports."""

# Green first: nothing in haematoxylin and eosin is green.
QUERY_COLORS = (
    (0, 185, 90),
    (30, 110, 230),
    (240, 140, 0),
    (0, 160, 190),
    (205, 175, 0),
    (225, 45, 60),
    (130, 90, 220),
    (120, 105, 90),
)


def query_color(query_index: int) -> tuple[int, int, int]:
    """The RGB colour of a query, the same in overlay, report and exports."""
    return QUERY_COLORS[query_index % len(QUERY_COLORS)]
