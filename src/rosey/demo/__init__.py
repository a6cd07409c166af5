"""A recorded night in a chat room, replayed through the bus: what `rosey demo` runs."""
