"""Responses that are kept, to answer equal requests: what makes requests equal, and where the responses are."""
