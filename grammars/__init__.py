"""Text to typed configuration, with positions: the protobuf text format, ModelConfig, the protocol's messages.

Imports nothing else of cantata. lark is imported here alone.
"""
