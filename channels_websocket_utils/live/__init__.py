"""Live connections: their states, the events that end them, and the messages sent to them."""
