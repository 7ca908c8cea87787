"""An ensemble as a graph: checks, the compiled plan, one request's run as a pure state machine, drawings.

Imports `cantata.grammars` alone. networkx is imported here alone, at load and never on the request path.
"""
