"""What a verdict means for code that calls somebody else's model or a tool.

`wrap.guarded` and `tools.guard_tool` are its doors for users, `consequences` for adapters.
"""
