"""How models write tool calls: one file a family, each a description that one shared reader reads by."""
