"""The SDK: HTTP only; it knows the words of `foundry.spec` and nothing of store or engine."""
