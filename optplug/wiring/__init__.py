"""Between optplug and a Lightning trainer. Duck-typed: only `callback` and `cli` import Lightning, by either name."""
