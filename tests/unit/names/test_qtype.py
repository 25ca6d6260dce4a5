"""The names of query types."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dnsprobe.names.qtype import QTYPES, qtype_name


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "A"),
        (2, "NS"),
        (12, "PTR"),
        (23, "NSAP-PTR"),
        (28, "AAAA"),
        (33, "SRV"),
        (65, "HTTPS"),
        (128, "NXNAME"),
        (255, "ANY"),
        (257, "CAA"),
        (261, "RESINFO"),
        (264, "IPN"),
        (0, "TYPE0"),
        (54, "TYPE54"),
        (65280, "TYPE65280"),
        (65535, "TYPE65535"),
    ],
)
def test_a_type_has_its_name_or_its_number(number: int, name: str) -> None:
    assert qtype_name(number) == name


def test_the_same_types_have_names_with_each_version_of_dnspython() -> None:
    assert set(QTYPES) == {*range(1, 54), *range(55, 69), *range(99, 110), 128, *range(249, 265), 32768, 32769}


def test_no_two_types_have_the_same_name() -> None:
    assert len(set(QTYPES.values())) == len(QTYPES)


def test_the_tree_command_does_not_import_dnspython() -> None:
    code = "import sys, dnsprobe.cli, dnsprobe.commands.tree; assert 'dns' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
