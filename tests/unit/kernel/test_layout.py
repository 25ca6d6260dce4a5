"""The layout of kernel structs: which macros a kernel gets, and what it means if it lacks a member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel.btf import Btf
from dnsprobe.kernel.layout import MISSING, Layout, layout_of

#: Members that have to be apart. All others are at offset 8.
OFFSETS = {"sk_buff.protocol": 100, "sk_buff.data": 200}


class FakeBtf:
    """A kernel with all members and enumerators except those in ``missing``."""

    def __init__(self, missing: frozenset[str], offsets: Mapping[str, int], names: frozenset[str]) -> None:
        self.missing, self.offsets, self.names = missing, offsets, names
        self.functions = {"ip_send_skb": 7}

    def offset(self, struct_name: str, *path: str) -> int:
        member = f"{struct_name}.{'.'.join(path)}"
        if member in self.missing:
            raise KeyError(member)
        return self.offsets.get(member, 8)

    def size(self, struct_name: str) -> int:
        return {"nf_conntrack_tuple_hash": 56}[struct_name]

    def enumerator(self, enum_name: str, name: str) -> int:
        if f"{enum_name}.{name}" in self.missing:
            raise KeyError(name)
        return {"ITER_UBUF": 0, "ITER_IOVEC": 1, "ITER_KVEC": 2}[name]

    def has_name(self, name: str) -> bool:
        return name in self.names


def of(*missing: str, offsets: Mapping[str, int] = OFFSETS, names: frozenset[str] = frozenset()) -> Layout:
    return layout_of(cast(Btf, FakeBtf(frozenset(missing), {**OFFSETS, **offsets}, names)))


def test_a_kernel_with_all_members_has_no_problem() -> None:
    found = of()
    assert (found.tcp_problem, found.lineage_problem, found.preemptible_tracepoints) == ("", "", False)
    assert MISSING not in found.macros.values()
    assert found.functions == {"ip_send_skb": 7}
    assert found.macros["ITER_KIND(type)"] == "((type)&255)"


def test_a_renamed_member_is_found_by_its_other_name() -> None:
    found = of("kernfs_node.parent", "iov_iter.iter_type", offsets={"kernfs_node.__parent": 48, "iov_iter.type": 4})
    assert (found.macros["KERNFS_PARENT"], found.macros["ITER_TYPE"]) == (48, 4)
    assert found.macros["ITER_KIND(type)"] == "((type)&~3U)"


def test_a_missing_required_member_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^this kernel has no sock\.sk_protocol$") as error:
        of("sock.sk_protocol")
    assert "Linux 5.10 or later" in error.value.hint


def test_an_unknown_sk_buff_is_an_error() -> None:
    with pytest.raises(UserError, match=r"sk_buff of this kernel has an unknown layout.* 129 octets"):
        of(offsets={"sk_buff.data": 221})


def test_a_missing_fact_is_unknown() -> None:
    found = of("task_struct.loginuid", "kernfs_node.parent", "kernfs_node.__parent")
    assert (found.macros["TASK_LOGINUID"], found.macros["KERNFS_PARENT"]) == (MISSING, MISSING)


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        (("tcp_sock.snd_una",), "this kernel has no tcp_sock.snd_una"),
        (("iov_iter.__iov", "iov_iter.iov"), "this kernel has no iov_iter.__iov"),
        (("iter_type.ITER_IOVEC",), "this kernel has no enumerator ITER_IOVEC"),
    ],
)
def test_without_a_member_tcp_is_not_watched(missing: tuple[str, ...], problem: str) -> None:
    found = of(*missing)
    assert found.tcp_problem == problem
    assert "SOCK_COMMON" not in found.macros


def test_addresses_too_far_apart_are_a_problem_for_tcp() -> None:
    found = of(offsets={"sock_common.skc_daddr": 61})
    assert found.tcp_problem == "struct sock_common of this kernel has an unknown layout: its addresses end at octet 65"


def test_without_ubuf_the_others_still_serve() -> None:
    found = of("iter_type.ITER_UBUF")
    assert (found.tcp_problem, found.macros["ITER_UBUF"], found.macros["ITER_KVEC"]) == ("", MISSING, 2)


def test_without_one_member_fast_open_is_left_out_as_a_whole() -> None:
    found = of("tcp_sock.segs_out")
    assert found.tcp_problem == ""
    assert not {"SOCK_STATE", "TCP_SEGS_OUT", "MSG_NAME", "MSG_FLAGS", "NET_TCP_FASTOPEN"} & found.macros.keys()


def test_members_of_conntrack_come_from_btf() -> None:
    found = of(offsets={"nf_conn.tuplehash": 24})
    assert (found.macros["CONNECTION_KEYS"], found.macros["KEY_SIZE"]) == (24, 56)


def test_without_conntrack_in_btf_its_members_are_where_they_have_always_been() -> None:
    found = of("nf_conn.tuplehash", "nf_conntrack_tuple_hash.tuple", "nf_conntrack_tuple.src", "nf_conntrack_tuple.dst")
    names = ("SKB_NFCT", "CONNECTION_KEYS", "KEY_TUPLE", "TUPLE_SOURCE", "TUPLE_DESTINATION", "KEY_SIZE")
    assert [found.macros[name] for name in names] == [8, 16, 16, 0, 20, 56]


def test_references_to_a_file_are_counted_from_0_or_1() -> None:
    assert of().macros["FILE_COUNT_OF_ONE"] == 1
    newer = of("file.f_count", offsets={"file.f_ref.refcnt": 176})
    assert (newer.macros["FILE_COUNT"], newer.macros["FILE_COUNT_OF_ONE"]) == (176, 0)


def test_without_a_member_the_current_task_is_taken_for_the_asker() -> None:
    known = of()
    assert (known.macros["KNOWS_OPEN_FILES"], known.macros["KNOWS_WAITERS"]) == (1, 1)
    assert of("files_struct.fdt").macros["KNOWS_OPEN_FILES"] == 0
    assert of("poll_wqueues.polling_task").macros["KNOWS_WAITERS"] == 0


def test_without_a_member_lineage_tracking_is_off() -> None:
    assert of("signal_struct.live").lineage_problem == "this kernel has no signal_struct.live"


def test_preemptible_tracepoints_are_recognized() -> None:
    assert of(names=frozenset({"class_srcu_fast_notrace_t"})).preemptible_tracepoints
