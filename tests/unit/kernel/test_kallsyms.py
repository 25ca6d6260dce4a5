"""Kernel functions, under the names that compilers give them."""

import pytest

from dnsprobe.kernel.kallsyms import Symbol, find_functions, read_kallsyms


def kallsyms(*names: str) -> bytes:
    return "".join(f"ffffffff8100{index:04x} t {name}\n" for index, name in enumerate(names)).encode()


@pytest.mark.parametrize(
    "name",
    [
        "udp_send_skb",
        "udp_send_skb.isra.51",
        "udp_send_skb.isra.0",
        "udp_send_skb.constprop.0",
        "udp_send_skb.part.0",
        "udp_send_skb.constprop.0.isra.3",
        "udp_send_skb.isra.123456789.constprop.7.part.20",
        "udp_send_skb\t[udp]",
        "udp_send_skb.isra.51\t[udp]",
    ],
)
def test_an_entry_is_found(name: str) -> None:
    (found,) = find_functions(kallsyms("ip_send_skb", name, "udp_sendmsg"), "udp_send_skb")
    assert found == Symbol(name.split("\t", maxsplit=1)[0], 0xFFFFFFFF81000001)


@pytest.mark.parametrize(
    "name",
    [
        "udp_send_skb.cold",
        "udp_send_skb.isra.51.cold",
        "udp_send_skb.cold.7",
        "udp_send_skb.isra.0.cold.3",
        "__pfx_udp_send_skb",
        "__pfx_udp_send_skb.isra.51",
        "udp_send_skb_list",
        "udp_send_skb2",
        "xudp_send_skb",
        "__udp_send_skb",
        "udp_send_skb.isra",
        "udp_send_skb.isra.",
        "udp_send_skb.isra.x",
        "udp_send_skb.other.0",
        "udp_send_skbXisra.0",
        "udp_v6_send_skb",
    ],
)
def test_other_symbols_are_no_entry(name: str) -> None:
    assert find_functions(kallsyms(name), "udp_send_skb") == []


@pytest.mark.parametrize("kind", ["d", "b", "r", "A", "?"])
def test_data_is_no_entry(kind: str) -> None:
    assert find_functions(f"ffffffff81000000 {kind} udp_send_skb\n".encode(), "udp_send_skb") == []


def test_all_entries_are_found_in_order() -> None:
    names = ("udp_send_skb.isra.0", "udp_send_skb.cold", "udp_send_skb.constprop.4", "udp_send_skb.part.1")
    found = find_functions(kallsyms(*names), "udp_send_skb")
    assert [symbol.name for symbol in found] == [names[0], names[2], names[3]]
    assert [symbol.is_part for symbol in found] == [False, False, True]


def test_a_hidden_address_is_zero() -> None:
    (found,) = find_functions(b"0000000000000000 T ip_send_skb\n", "ip_send_skb")
    assert found.address == 0


def test_a_missing_table_is_empty() -> None:
    assert read_kallsyms("/nonexistent") == b""
    assert find_functions(b"", "ip_send_skb") == []
