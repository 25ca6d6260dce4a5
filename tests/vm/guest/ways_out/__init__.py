"""Situations in which queries leave a host, or do not: see :mod:`ways_out.place` and :mod:`ways_out.observers`.

The modules with situations are imported by :mod:`ways_out.situations`, in the order of the table in docs/ways-out.md.
"""
