"""Made-up files of /proc."""

#: When made-up processes started, in clock ticks since boot.
START = 91990


def stat_line(comm: bytes = b"dig", state: str = "S", threads: int = 1, start: int = START, pid: int = 4242) -> bytes:
    before = f" {state} 1 1 1 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 {threads} 0 {start} 3133440 386 18446744073709551615"
    return f"{pid} (".encode() + comm + b")" + before.encode() + b" 0" * 27 + b"\n"
