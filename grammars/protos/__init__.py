"""The protocol's .proto files and their compiled descriptor set; data only, read by `cantata.grammars.messages`."""
