"""The methods, one function each, grouped by idea. They use what any user's file can: the public names of limbeck."""
