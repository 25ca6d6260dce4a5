"""The names of query classes."""

from __future__ import annotations

import pytest

from dnsprobe.names.qclass import IN, qclass_name


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (IN, "IN"),
        (3, "CH"),
        (4, "HS"),
        (254, "NONE"),
        (255, "ANY"),
        (0, "CLASS0"),
        (2, "CLASS2"),
        (32769, "CLASS32769"),
        (65535, "CLASS65535"),
    ],
)
def test_a_class_has_its_name_or_its_number(number: int, name: str) -> None:
    assert qclass_name(number) == name
