"""
Seeded weaknesses, and the tests that catch them
================================================

Each row is one weakness that is put into a copy of the package before one of the tests runs.
*Caught by* is that test: it fails. The last row is the control: the unchanged copy, for which all
of these tests pass.
"""

# Over 300 lines: one list.

import asyncio
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

PACKAGES = ["pytest"]
ROOT = Path(__file__).parent.parent
LIMIT = 300

# The weakness, the module, the text that is replaced, its replacement, and the test as FILE::TEST,
# the file without "test_". tests/unit/test_mutations.py checks that all of them exist.
WEAKNESSES = [
    # Tokens
    (
        "redeem a token more than once",
        "tokens/database_store.py",
        " AND {used_at} IS NULL",
        "",
        "tokens::test_token_is_redeemed_once",
    ),
    (
        "name the user in the UPDATE that decides",
        "tokens/database_store.py",
        (
            '        statement = "UPDATE {table} SET {used_at} = %(now)s"\n'
            "        return _change_unused(statement, now, digest=row.digest) == 1\n"
        ),
        (
            "        rows = WebSocketToken.objects.filter(digest=row.digest, used_at=None)\n"
            "        return rows.filter(user__is_active=True).update(used_at=now) == 1\n"
        ),
        "tokens::test_deciding_update_names_the_tokens_own_columns_only",
    ),
    (
        "do not read the end of a session together with the token",
        "tokens/database_store.py",
        "row.is_session_ended = bool(found.pop())",
        "row.is_session_ended = found.pop() is None",
        "connections::test_page_that_reconnects_before_its_session_is_flushed_does_not_survive",
    ),
    (
        "read the end of the connection's session only, and not of the token's",
        "tokens/database_store.py",
        'NullIf(OuterRef("session_digest"), Value(""))',
        'parameter("session_digest")',
        "connections::test_page_that_reconnects_before_its_session_is_flushed_does_not_survive",
    ),
    (
        "ignore the answer of the cache's delete()",
        "tokens/cache_store.py",
        (
            '            if not cache.delete(_key("token", row.digest)):\n'
            "                return False\n"
        ),
        '            cache.delete(_key("token", row.digest))\n',
        "stores::test_one_of_several_threads_redeems_a_token",
    ),
    (
        "ignore the epochs of a token",
        "tokens/cache_store.py",
        "            return cache.get_many(row.epochs) == row.epochs",
        "            return True",
        "stores::test_disconnect_revokes_only_the_users_own_unused_tokens",
    ),
    (
        "accept a token at the moment it expires",
        "tokens/redeeming.py",
        "<= present < row.expires_at:",
        "<= present <= row.expires_at:",
        "tokens::test_token_is_valid_from_its_creation_until_just_before_it_expires",
    ),
    (
        "accept a token that was issued in the future",
        "tokens/redeeming.py",
        "if not row.created_at - clock.TOLERANCE <= present",
        "if not present",
        "tokens::test_token_is_valid_from_its_creation_until_just_before_it_expires",
    ),
    (
        "accept the token of another user",
        "tokens/redeeming.py",
        "    if user_id is not None and row.user_id != user_id:",
        "    if False:",
        "tokens::test_each_refusal_has_its_reason",
    ),
    (
        "accept the token of another session",
        "tokens/redeeming.py",
        "row.session_digest != session_digest:",
        "False:",
        "middleware::test_token_of_an_ended_session_is_refused",
    ),
    (
        "accept the token of another path",
        "tokens/redeeming.py",
        "    if row.path and row.path != path:",
        "    if False:",
        "middleware::test_token_opens_the_path_it_is_bound_to_and_no_other",
    ),
    (
        "store a path that contains a token",
        "tokens/issuing.py",
        " or masked != path:",
        ":",
        "tokens::test_path_that_contains_a_token_is_refused_and_not_stored",
    ),
    (
        "remove percent-escapes only once",
        "tokens/shape.py",
        "_LEVELS = 8\n",
        "_LEVELS = 1\n",
        "routes::test_mask_hides_tokens_with_percent_escapes",
    ),
    (
        "remove any number of percent-escapes",
        "tokens/shape.py",
        "_PLACEHOLDER if escapes > MAX_ESCAPES else _mask_escaped",
        "_mask_escaped",
        "routes::test_thousands_of_escapes_are_not_unescaped",
    ),
    (
        "leave texts with thousands of percent-escapes as they are",
        "tokens/shape.py",
        "    if not escapes:\n",
        "    if not 0 < escapes <= MAX_ESCAPES:\n",
        "routes::test_thousands_of_escapes_are_not_unescaped",
    ),
    # Gate
    (
        "accept a token from before a password change",
        "gate/decision.py",
        "    if not digests.has_auth_digest(user, row.auth_digest):",
        "    if False:",
        "middleware::test_token_only_is_refused_after_the_user_has_changed",
    ),
    (
        "accept a session from before a password change",
        "gate/decision.py",
        "    if hash_to_check is not None and not has_session_hash(user, hash_to_check):",
        "    if False:",
        "middleware::test_session_from_before_a_password_change_signs_no_user_in",
    ),
    (
        "redeem a token whose session was logged out",
        "gate/decision.py",
        "and revocations.is_session_ended(principal.session_digest)",
        "and False",
        "connections::test_page_that_reconnects_before_its_session_is_flushed_does_not_survive",
    ),
    (
        "treat an outage as a route without a token",
        "gate/decision.py",
        'annotate("unavailable"))',
        'annotate("missing"))',
        "middleware::test_connect_ends_with_4490_if_the_database_raises_an_error",
    ),
    (
        "let the error of one request affect the other requests",
        "gate/decision.py",
        "        # The caller raises it, with its traceback, for this connection alone.\n",
        "        raise\n",
        "decision::test_programming_error_is_raised_for_its_own_request_only",
    ),
    (
        "trust the user that was read at the connect",
        "gate/freshness.py",
        "    fresh = load_user(key_of_user(user), backend_path(read_sign_in(session, user)))\n",
        "    fresh = user\n",
        "decorators::test_guard_sees_the_database_as_it_is_at_every_call",
    ),
    (
        "trust an expired session",
        "gate/freshness.py",
        "        rows = rows.filter(expire_date__gt=timezone.now())\n",
        "",
        "connections::test_timer_notices_that_a_session_has_ended",
    ),
    (
        "read only the newest revocations",
        "gate/revocations.py",
        "created_at__gt=kept_since(clock.now())",
        "created_at__gt=clock.now() - timedelta(seconds=1)",
        "connections::test_timer_reads_rows_that_were_committed_out_of_order",
    ),
    (
        "let a path converter raise any exception",
        "gate/routing.py",
        "    except Exception as error:\n",
        "    except ValueError as error:\n",
        "middleware::test_route_whose_converter_raises_is_refused_and_logged",
    ),
    (
        "accept the first of two tokens",
        "gate/handshake.py",
        "    elif len(found) > 1 or _count(scope) > 1:",
        "    elif False:",
        "middleware::test_two_tokens_are_refused_and_stay_unused",
    ),
    (
        "ignore a generator that a message calls and nobody iterates over",
        "messaging/calls.py",
        "        return _check_caller(call, values)\n",
        "        return\n",
        "streams::test_generator_that_is_called_without_a_reply_key_names_the_remedy",
    ),
    (
        "refuse the generator of a method that another method calls",
        "messaging/calls.py",
        'if not isinstance(name, str) or name.replace(".", "_") != values.__name__:',
        "if not isinstance(name, str):",
        "streams::test_generator_that_a_handler_calls_is_no_stream",
    ),
    (
        "answer the text of an Http404",
        "messaging/errors.py",
        (
            "    if isinstance(error, _NOT_FOUND):\n"
            '        return MessageError("not_found", "This does not exist.")\n'
        ),
        (
            "    if isinstance(error, _NOT_FOUND):\n"
            '        return MessageError("not_found", str(error))\n'
        ),
        "errors::test_error_of_the_caller_is_answered_and_not_logged",
    ),
    (
        "answer a KeyError of any dictionary as a missing key of the message",
        "messaging/errors.py",
        "    if isinstance(error, _MissingKey):\n",
        "    if isinstance(error, KeyError):\n",
        "errors::test_error_of_the_server_is_internal_and_logged",
    ),
    (
        "name any number of fields in an error",
        "messaging/errors.py",
        "    found = found[:MAX_FIELDS]\n",
        "",
        "errors::test_answer_has_no_more_than_100_fields",
    ),
    (
        "let clients call a guarded handler of the channel layer",
        "messaging/methods.py",
        "    wrapper._is_websocket_routed = method.is_routed\n",
        "    wrapper._is_websocket_routed = True\n",
        "decorators::test_guarded_handler_of_the_layer",
    ),
    (
        "answer a client of a plain consumer for a handler of the channel layer",
        "messaging/calls.py",
        "    if is_ours(consumer) or not method.is_routed:\n",
        "    if is_ours(consumer):\n",
        "decorators::test_guarded_handler_of_the_layer",
    ),
    (
        "answer the denial of a guard alone, and no result",
        "messaging/methods.py",
        "    has_result = is_routed and (perms is None or inner is None)\n",
        "    has_result = perms is None\n",
        "decorators::test_guard_alone_answers_a_result_too",
    ),
    (
        "answer a consumer's close with a code by HTTP 403",
        "live/connection.py",
        'not self.is_accepted and not protocol.is_sendable_code(message.get("code"))',
        "not self.is_accepted",
        "middleware::test_refusal_of_a_consumer_reaches_the_browser",
    ),
    (
        "stop a page whose token was refused, because its anonymous user is denied",
        "live/closing.py",
        "    return protocol.CLOSE_TOKEN_REFUSED if is_token_refused else protocol.CLOSE_REFUSED",
        "    return protocol.CLOSE_REFUSED",
        "middleware::test_refusal_after_a_refused_token_asks_for_a_new_token",
    ),
    (
        "stop a page at a PermissionDenied of any message",
        "middleware.py",
        "isinstance(error, REFUSALS) and not connection.is_connect_handled",
        "isinstance(error, REFUSALS)",
        "middleware::test_permission_denied_of_a_later_message_is_an_error",
    ),
    (
        "read a handshake of any size",
        "middleware.py",
        "        if is_too_large(scope):\n",
        "        if False:\n",
        "middleware::test_handshake_that_is_too_large_is_refused_and_its_token_stays_unused",
    ),
    (
        "unescape cookies with any number of backslashes",
        "gate/admission.py",
        'if value.count(b"\\\\") > _MAX_BACKSLASHES:',
        "if False:",
        "middleware::test_cookies_with_thousands_of_backslashes_are_left_out",
    ),
    (
        "ignore how a token is written in the raw path",
        "gate/handshake.py",
        "    return all(token.encode() in text for text in raw_texts)",
        "    return True",
        "routes::test_percent_escapes_are_malformed",
    ),
    (
        "leave the token in the scope",
        "gate/handshake.py",
        "    masked = _mask_scope(scope)\n",
        "    masked = dict(scope)\n",
        "routes::test_masked_path_matches_the_same_route",
    ),
    (
        "leave the user in the scope of a refused connection",
        "gate/admission.py",
        '    scope["user"] = annotation.user or anonymous()\n',
        "",
        "middleware::test_consumer_that_does_not_check_the_token_gets_an_anonymous_user",
    ),
    (
        "leave the session in the scope of a refused connection",
        "gate/admission.py",
        '        scope["session"] = new_session()\n',
        "        pass\n",
        "middleware::test_consumer_that_does_not_check_the_token_gets_an_anonymous_user",
    ),
    (
        "register after the token was redeemed",
        "middleware.py",
        (
            "        await register(connection)\n"
            "        request = admission.request_of(arrival, token_only=self.token_only)\n"
            "        (verdict,) = await in_our_pool(decision.decide)([request])\n"
        ),
        (
            "        request = admission.request_of(arrival, token_only=self.token_only)\n"
            "        (verdict,) = await in_our_pool(decision.decide)([request])\n"
            "        await register(connection)\n"
        ),
        "connections::test_event_between_redeeming_and_opening_is_applied",
    ),
    (
        "do not release a connection",
        "middleware.py",
        "            await connection.leave()\n",
        "            pass\n",
        "connections::test_everything_is_released",
    ),
    (
        "keep the server's functions in a frame of the gate",
        "middleware.py",
        "        del receive, send\n",
        "",
        "middleware::test_servers_functions_are_in_no_frame_of_the_package",
    ),
    (
        "keep the path that no route matches in a frame of the gate",
        "middleware.py",
        "        del scope\n",
        "",
        "middleware::test_servers_functions_are_in_no_frame_of_the_package",
    ),
    # Live connections
    (
        "allow any change of the state",
        "live/state.py",
        "    if after not in _NEXT_STATES[before]:",
        "    if False:",
        "state::test_change_that_is_not_in_the_table_raises",
    ),
    (
        "handle messages that arrive after the end",
        "live/connection.py",
        'not self.ended or message["type"] != "websocket.receive":',
        "True:",
        "state::test_message_that_arrives_before_the_wait_is_interrupted_is_dropped",
    ),
    (
        "handle a message that Channels has already received",
        "live/connection.py",
        "        return self.state is not OPEN and self.state in (REJECTED, CLOSING, ABANDONED)",
        "        return False",
        "connections::test_message_that_channels_has_already_received_is_not_handled",
    ),
    (
        "do not answer the offer of a token",
        "live/connection.py",
        '        if not message.get("subprotocol") and self.token_subprotocol:',
        "        if False:",
        "middleware::test_each_accept_answers_the_offer_of_a_token",
    ),
    (
        "let a handler send for ever",
        "live/dropping.py",
        '            raise SocketEnded("The socket has ended.")',
        "            pass",
        "connections::test_handler_that_sends_for_ever_is_stopped",
    ),
    (
        "queue pushes without a limit",
        "live/outbox.py",
        "        if len(self._waiting) >= MAX_WAITING:",
        "        if False:",
        "outbox::test_message_for_a_full_outbox_is_not_kept",
    ),
    (
        "do not interrupt a consumer that waits",
        "live/hub.py",
        "            connection.notify_consumer()\n",
        "",
        "connections::test_consumer_receives_its_disconnect_with_the_code",
    ),
    (
        "wait for each close before the next",
        "live/hub.py",
        "            connection.begin_close()",
        "            await connection.close()",
        "connections::test_client_that_does_not_answer_its_close_delays_no_other",
    ),
    (
        "ignore a known logout when a connection activates",
        "live/hub.py",
        "        if self.recheck.has_ended(principal.session_digest):",
        "        if False:",
        "connections::test_known_logout_ends_a_socket_that_the_gate_accepted",
    ),
    (
        "connect before the listeners have subscribed",
        "live/hub.py",
        "        await asyncio.gather(*(listener.ready() for listener in self._listeners))",
        "        pass",
        "broadcast::test_connect_waits_until_the_listener_has_subscribed",
    ),
    (
        "forget the applied revocations with the last connection",
        "live/hub.py",
        "self._linger_timer = self.loop.call_later(LINGER, self.stop, context=Context())",
        "self._linger_timer = self.loop.call_later(0, self.stop, context=Context())",
        "connections::test_reconnected_user_stays_also_without_other_connections",
    ),
    (
        "end every connection that is re-checked",
        "live/recheck.py",
        "        ended = {each for each in connections if each.principal in outdated}",
        "        ended = set(connections)",
        "connections::test_saving_a_user_ends_no_valid_socket",
    ),
    (
        "keep connections for ever without a database",
        "live/recheck.py",
        "if self.is_database_unavailable and time.monotonic() - self._answered_at > grace:",
        "if False:",
        "connections::test_sockets_end_when_the_database_stays_unavailable",
    ),
    (
        "count a programming error in the re-check as an outage",
        "outages.py",
        "    return isinstance(error, outage_errors())",
        "    return True",
        "connections::test_programming_error_in_the_recheck_is_logged_and_ends_no_socket",
    ),
    (
        "do not check the database after events may have been lost",
        "live/broadcast.py",
        "                            self._missed()",
        "                            pass",
        "broadcast::test_database_is_checked_when_the_layer_is_available_again",
    ),
    (
        "let the membership of a group expire",
        "live/broadcast.py",
        ("                    await self._join(layer, channel)\n                    renewal ="),
        "                    renewal =",
        "broadcast::test_membership_is_renewed_before_the_layer_forgets_it",
    ),
    (
        "handle an event of the same process twice",
        "live/broadcast.py",
        'if fields.get("sender") == _sender():',
        "if False:",
        "broadcast::test_pushes_of_other_processes_and_of_this_process_arrive_once",
    ),
    (
        "receive pushes and revocations on one channel",
        "live/broadcast.py",
        'PUSHES = "websocket_utils.pushes"',
        "PUSHES = REVOCATIONS",
        "broadcast::test_pushes_of_other_processes_and_of_this_process_arrive_once",
    ),
    (
        "listen on the layer instance that consumers use",
        "live/broadcast.py",
        '    return hasattr(layer, "close_pools")',
        "    return False",
        "broadcast::test_pushes_and_group_messages_both_arrive",
    ),
    (
        "publish the event of a new password within the request",
        "live/receivers.py",
        "    changed = _changed_users.get(_request())",
        "    changed = None",
        "connections::test_recheck_event_of_a_new_password_is_published_after_the_request",
    ),
    (
        "publish a disconnect before the commit",
        "utils.py",
        "    revocations.when_committed(broadcast_revocation)",
        "    broadcast_revocation()",
        "connections::test_disconnect_waits_for_the_commit",
    ),
    # Messages
    (
        "call any method that a client names",
        "consumers.py",
        (
            "        if name not in self._routes:\n"
            '            raise MessageError("unknown_type", "There is no such method.")\n'
            "        function, has_event = self._routes[name]\n"
        ),
        (
            "        function = getattr(type(self), name)\n"
            "        has_event = name not in self._routes or self._routes[name][1]\n"
        ),
        "consumers::test_nothing_unlisted_can_be_called",
    ),
    (
        "parse a message of any size",
        "protocol.py",
        ("    if len(text) > max_size:\n        raise _too_large(max_size)\n"),
        "    max_size = len(text) * 4\n",
        "protocol::test_unreadable_text_is_refused_before_it_is_parsed",
    ),
    (
        "run a call that was denied",
        "messaging/calls.py",
        ("    if call.denial is not None:\n        raise call.denial\n    if is_async:"),
        "    if is_async:",
        "decorators::test_body_of_a_denied_call_does_not_run",
    ),
    (
        "do not check the end of a socket again after the wait for a thread",
        "messaging/calls.py",
        "return _drop(consumer) if has_ended(consumer) else _run(",
        "return _run(",
        "threads::test_call_that_waits_for_a_thread_does_not_outlive_its_socket",
    ),
    (
        "accept a generator on a plain consumer",
        "messaging/calls.py",
        ("    if not is_ours(call.consumer):\n        raise TypeError("),
        ("    if not is_ours(call.consumer):\n        return\n        raise TypeError("),
        "streams::test_generator_on_a_consumer_of_channels_is_a_mistake_that_is_logged",
    ),
    (
        "cache a permission that was removed during its check",
        "messaging/permissions.py",
        "    permission_cache[perms] = code, user_pk, time.monotonic()",
        (
            "    if connection is not None:\n"
            "        connection.permission_cache[perms] = code, user_pk, time.monotonic()"
        ),
        "permissions::test_answer_from_before_the_change_is_not_cached",
    ),
    (
        "use a cached permission for another user",
        "messaging/permissions.py",
        'getattr(consumer.scope.get("user"), "pk", None) == user_pk',
        "True",
        "permissions::test_cached_answer_is_not_used_for_another_user",
    ),
    (
        "do not count messages for the rate limit",
        "messaging/rate_limit.py",
        "            self._allowance -= 1\n",
        "            pass\n",
        "limits::test_message_above_the_rate_limit_is_answered_with_an_error",
    ),
    (
        "count credit for the rate limit",
        "messaging/rate_limit.py",
        "            self._allowance += 1\n",
        "            pass\n",
        "streams::test_credit_does_not_count_for_the_rate_limit",
    ),
    (
        "let the connect wait behind handlers",
        "messaging/dispatch.py",
        "        is_urgent = is_connect or (",
        "        is_urgent = not is_connect and (",
        "threads::test_connect_does_not_wait_for_blocked_handlers",
    ),
    (
        "let a client that floods block the other connections",
        "messaging/dispatch.py",
        ("                    await asyncio.sleep(0)\n                    done = 0"),
        "                    done = 0",
        "threads::test_client_that_floods_does_not_block_the_event_loop",
    ),
    (
        "never close the stale connections of the async ORM",
        "messaging/dispatch.py",
        "            if may_hold_stale_connections(self._loop):",
        "            if False:",
        "threads::test_connection_that_the_server_closed_fails_one_async_handler_at_most",
    ),
    # Streams
    (
        "send more parts than the credit allows",
        "messaging/streams.py",
        "        while self._credit == 0:",
        "        while False:",
        "streams::test_server_pauses_when_the_credit_is_used_up",
    ),
    (
        "add credit for parts that were not sent",
        "messaging/streams.py",
        "        return self._max_credit is not None and self._credit + parts <= self._max_credit",
        "        return self._max_credit is not None",
        "streams::test_credit_for_parts_that_were_not_sent_counts_for_the_rate_limit",
    ),
    (
        "begin a step after the socket has ended",
        "messaging/streams.py",
        "        return self.is_cancelled or has_ended(self.call.consumer)",
        "        return False",
        "streams::test_step_that_waits_for_a_thread_does_not_outlive_its_stream",
    ),
    (
        "continue a generator that ignores its cancel",
        "messaging/streams.py",
        "        if value is _END or self.is_cancelled:",
        "        if value is _END:",
        "streams::test_generator_that_ignores_its_cancel_is_ended",
    ),
    (
        "check the permissions of a stream only once",
        "messaging/streams.py",
        "        if not self.call.guards:",
        "        if True:",
        "streams::test_guarded_stream_is_denied_once_the_permission_is_gone",
    ),
    (
        "send a part although the permission was removed during its step",
        "messaging/streams.py",
        ("        # The step may have taken long.\n        await self._check(where)\n"),
        "",
        "streams::test_part_is_not_sent_if_the_permission_was_removed_during_its_step",
    ),
    (
        "send such a part on a sync consumer",
        "messaging/streams.py",
        "        run_now(self._send(_IN_THREAD, value))",
        (
            "        part = protocol.build_part(self.call.reply_key, value)\n"
            "        run_now(answers.send(self.call.consumer, part))"
        ),
        "streams::test_part_is_not_sent_if_the_permission_was_removed_during_its_step",
    ),
    (
        "do not close the generator of a stream",
        "messaging/streams.py",
        "            await self._close(turn)",
        "            pass",
        "streams::test_stream_ends_when_its_client_leaves",
    ),
    (
        "run two threads in a sync consumer",
        "messaging/streams.py",
        "        turn = turn or contextlib.nullcontext()",
        "        turn = contextlib.nullcontext()",
        "streams::test_one_thread_at_a_time_runs_in_a_sync_consumer",
    ),
    (
        "log a cancel as an error of the generator",
        "messaging/streams.py",
        ("            if self.is_cancelled or is_meant:\n                raise"),
        "            pass",
        "streams::test_cancel_interrupts_an_async_generator",
    ),
    (
        "let a transaction stay open in a thread that other connections use",
        "messaging/streams.py",
        "        if _open_transactions() != before:",
        "        if False:",
        "streams::test_transaction_that_is_open_at_a_yield_is_an_error_and_affects_no_other_socket",
    ),
    (
        "ignore a change between the check of a call and its stream",
        "messaging/streams.py",
        "        self._asked_at, self._permission_cache = call.asked_at, call.permission_cache",
        (
            "        self._asked_at = time.monotonic()\n"
            "        self._permission_cache = permission_cache_of(call.consumer)"
        ),
        "streams::test_permission_that_is_removed_right_after_its_check_ends_the_stream",
    ),
    (
        "allow any number of streams for a socket",
        "messaging/open_streams.py",
        "        if len(self._streams) >= MAX_STREAMS:",
        "        if False:",
        "streams::test_socket_has_sixteen_streams_at_a_time",
    ),
    (
        "answer a call with the key of a running stream",
        "messaging/open_streams.py",
        "            call.reply_key = None\n",
        "",
        "streams::test_reply_key_of_a_running_stream_is_refused_and_the_stream_continues",
    ),
    (
        "let a second cancel interrupt the end of a generator",
        "messaging/open_streams.py",
        "        if task is not None and not is_ending:",
        "        if task is not None:",
        "streams::test_second_cancel_does_not_interrupt_the_finally",
    ),
    (
        "ignore a cancel",
        "messaging/receiving.py",
        "        streams.cancel(reply_key)",
        "        pass",
        "streams::test_cancel_ends_a_stream_without_an_answer",
    ),
    (
        "do not end the streams of a consumer that raised an exception",
        "messaging/dispatch.py",
        (
            "            # A consumer that raised has not dispatched its disconnect.\n"
            "            await self._stop_streams()"
        ),
        "            pass",
        "streams::test_streams_end_with_a_consumer_that_raises",
    ),
    # Threads and database connections
    (
        "let the work of a thread wait for the same pool",
        "threads.py",
        "    if any(work.pool == name and not work.is_done for work in _waiting_work.get()):",
        "    if False:",
        "threads::test_code_in_a_thread_never_waits_for_another_thread_of_its_pool",
    ),
    (
        "never check a database connection again",
        "database_connections.py",
        "            if is_idle(connection) and not (is_trusted and not has_failed(connection)):",
        "            if False:",
        "threads::test_connection_that_the_server_closed_does_not_fail_later_work",
    ),
    (
        "trust a database connection that has failed",
        "compat.py",
        "    return is_left_open or connection.errors_occurred",
        "    return is_left_open",
        "threads::test_busy_thread_fails_once_at_most",
    ),
    (
        "close the connection of a transaction that continues",
        "compat.py",
        "    return connection.connection is not None and not connection.in_atomic_block",
        "    return connection.connection is not None",
        "threads::test_connection_in_a_transaction_is_not_closed",
    ),
    # Logs and the token endpoint
    (
        "leave tokens in exceptions",
        "log_filters.py",
        "            _hide_exception(record)\n",
        "            pass\n",
        "log_filters::test_exception_that_shows_a_token_is_kept_as_masked_text",
    ),
    (
        "leave tokens in objects that show them when they are formatted",
        "log_filters.py",
        "            _hide_message(record)\n",
        "            pass\n",
        "log_filters::test_token_is_in_no_line",
    ),
    (
        "leave tokens in containers that contain themselves",
        "log_filters.py",
        "            hidden[id(value)] = _LEFT_OUT\n",
        "            hidden[id(value)] = value\n",
        "log_filters::test_container_that_contains_itself_is_masked",
    ),
    (
        "search the last value of each key of a query only",
        "log_filters.py",
        "    is_multiple = isinstance(values, MultiValueDict)\n",
        "    is_multiple = False\n",
        "log_filters::test_all_values_of_a_query_are_masked",
    ),
    (
        "leave session keys in the locals of a logged exception",
        "gate/isolation.py",
        "        traceback.clear_frames(each.__traceback__)\n",
        "",
        "isolation::test_locals_of_a_logged_exception_show_no_session_key",
    ),
    (
        "leave the cookie in the locals of a failed guard",
        "gate/freshness.py",
        "    del scope\n",
        "",
        "isolation::test_locals_of_a_failed_guard_show_no_cookie",
    ),
    (
        "replace the arguments by a plain dictionary",
        "log_filters.py",
        "    masked = copy.copy(values)\n",
        "    masked = {}\n",
        "log_filters::test_token_is_in_no_line",
    ),
    (
        "issue tokens to the forms of other sites",
        "views.py",
        "@csrf_protect\n",
        "",
        "views::test_no_token_is_issued_without_the_csrf_token",
    ),
    (
        "allow caches to keep tokens",
        "views.py",
        "@never_cache\n",
        "",
        "views::test_answers_are_not_cached",
    ),
]
CONTROL = "nothing: the control"


async def measure(small, is_kept):
    rows = WEAKNESSES[:1] if small else WEAKNESSES
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        # What other processes compile meanwhile comes and goes.
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("channels_websocket_utils", "docs", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name, module, old, new, test in rows:
            if is_kept(name):
                continue
            file = copy / "channels_websocket_utils" / module
            source = file.read_text()
            if source.count(old) != 1:
                raise AssertionError(f"{name}: {module} has no such text, or has it twice: {old!r}")
            file.write_text(source.replace(old, new))
            caught_by = await first_failure(copy, [test])
            file.write_text(source)
            broken = [] if caught_by else ["no test fails"]
            yield name, {"module": module, "caught by": caught_by or "nothing"}, broken
        if not is_kept(CONTROL):
            failure = await first_failure(copy, sorted({row[-1] for row in rows}))
            broken = ["the tests fail without any weakness"] if failure else []
            yield (
                CONTROL,
                {"module": "", "caught by": failure or "nothing, as it should be"},
                broken,
            )


async def first_failure(copy, tests):
    """Run ``tests``, each a FILE::TEST, in the copy; return the name of the first that fails."""
    # The tests' own settings; and the copy before the package that is installed.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
        *(f"{file_of(test, copy)}::{test.partition('::')[2]}" for test in tests),
        cwd=copy,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**kept, "PYTHONPATH": str(copy)},
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    except asyncio.TimeoutError:
        process.kill()
        return "a test that hung"
    found = re.search(r"^(?:FAILED|ERROR) tests/\S+?::(\w+)", output.decode(), re.M)
    if process.returncode == 1 and found:
        return found[1]
    if process.returncode:
        raise AssertionError(output.decode())
    return None


def file_of(test, root=ROOT):
    """Return the file of a FILE::TEST below ``root``."""
    (file,) = root.glob(f"tests/*/test_{test.partition('::')[0]}.py")
    return file
