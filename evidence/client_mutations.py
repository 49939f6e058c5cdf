"""
The seeded weaknesses of the client's topics, and the tests of ``tests/js`` that catch them.

``mutations.py`` puts them into its table.
"""

__all__ = ["CLIENT_WEAKNESSES"]

SCRIPT = "static/websocket_utils/WebSocketManager.js"

# As in mutations.py. A test is FILE::NAME, the file one of tests/js.
CLIENT_WEAKNESSES = [
    (
        "client: deliver a message twice after a reconnect",
        SCRIPT,
        "|| offset <= subscription.position?.offset) return",
        ") return",
        "topics.test.mjs::two subscriptions of one topic have positions of their own",
    ),
    (
        "client: forget a gap",
        SCRIPT,
        "if (subscription._lapse) {",
        "if (false) {",
        "topics.test.mjs::a position that cannot be replayed is one gap, and the subscription "
        "goes on from there",
    ),
    (
        "client: move a position backwards",
        SCRIPT,
        "subscription.position = subscription.position || topic.position",
        "subscription.position = topic.position",
        "topics.test.mjs::a position that the page has read after the last message joins a live "
        "topic",
    ),
    (
        "client: subscribe again without the position",
        SCRIPT,
        "since: (topic.asked = oldest(topic))",
        "since: void oldest(topic)",
        "topics.test.mjs::after a reconnect the messages that were missed come first",
    ),
    (
        "client: call a handler after unsubscribe()",
        SCRIPT,
        "|| subscription.state === ENDED ||",
        "||",
        "topics.test.mjs::a handler that unsubscribes gets no further message, neither of a "
        "replay nor live",
    ),
    (
        "client: keep the positions for another user",
        SCRIPT,
        "        subscription.position = null\n",
        "",
        "topics.test.mjs::another user begins without the positions of the first one",
    ),
    (
        "client: ignore the positions of the page",
        SCRIPT,
        "since = manager.positions?.[name] }",
        "since }",
        "topics.test.mjs::the positions of the page are those of its subscriptions, and not "
        "those of another user",
    ),
    (
        "client: ask for a refused topic again without an end",
        SCRIPT,
        '["unavailable", "rate_limited", "timeout"].includes(error.code)',
        'error.code !== "unsupported"',
        "topics.test.mjs::a refusal goes to the handlers of the subscription, else to on(error) "
        "of the manager",
    ),
    (
        "client: report the reason of another position for the gap of another user",
        SCRIPT,
        "if (subscription._lapse) skip(manager, topic, subscription, {})",
        "skip(manager, topic, subscription, answer)",
        "topics.test.mjs::the gap of another user has its own reason, beside a position that "
        "cannot be replayed",
    ),
]
