"""The form of the report follows Accept."""

import pytest

from service.negotiation import choose

OFFERED = ("application/json", "text/html")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "text/html"),
        ("text/*", "text/html"),
        ("TEXT/HTML;level=1", "text/html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json;q=0.1, text/html;q=0.2", "text/html"),
        ("application/json;q=0, */*", "text/html"),
        ("application/pdf, application/json;q=0.5", "application/json"),
        ("application/pdf", None),
        ("application/json;q=0", None),
        ("text/html;q=broken", None),
    ],
)
def test_the_best_form_is_chosen(accept: str | None, chosen: str | None) -> None:
    assert choose(accept, OFFERED) == chosen
