"""The colours of queries, the same in overlay, report and exports."""

QUERY_COLORS = (
    (230, 57, 70),
    (29, 120, 216),
    (244, 162, 40),
    (0, 150, 110),
    (155, 93, 229),
    (214, 64, 159),
    (0, 160, 190),
    (140, 110, 20),
)


def query_color(query_index: int) -> tuple[int, int, int]:
    """The RGB colour of a query, the same in overlay, report and exports."""
    return QUERY_COLORS[query_index % len(QUERY_COLORS)]
