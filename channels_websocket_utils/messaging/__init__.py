"""Messages from clients: calls, permissions, rate limits and streams."""
