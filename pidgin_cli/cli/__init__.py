"""Commands: parse, call one function, print. The only place where things are wired together."""
