"""Where the time of a running process goes: `tidegate profile`.

`turns` is what a worker counts of its own turns; `recording` has profilers sample its stacks, which
the Rust program of `flame/` draws.
"""
