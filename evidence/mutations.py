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

from .client_mutations import CLIENT_WEAKNESSES

PACKAGES = ["pytest"]
ROOT = Path(__file__).parent.parent
LIMIT = 300

# The weakness, the module, the text that is replaced, its replacement, and the test as FILE::TEST,
# the file without "test_", or one of tests/js. tests/unit/test_mutations.py checks that all of them
# exist.
WEAKNESSES = [
    # Tokens
    (
        "redeem a token more than once",
        "tokens/database_store.py",
        " AND {{used_at}} IS NULL",
        "",
        "tokens::test_token_is_redeemed_once",
    ),
    (
        "use the compiled queries of a database for another one of the same alias",
        "tokens/queries.py",
        "if kept is None or kept[0] is not connection.settings_dict:",
        "if kept is None:",
        "stores::test_other_settings_of_a_database_have_their_own_compiled_queries",
    ),
    (
        "let all threads use the converters of one connection",
        "tokens/queries.py",
        'kept = connection.__dict__.setdefault("_websocket_utils_converters", {})',
        'kept = compiled_for(connection).setdefault("_websocket_utils_converters", {})',
        "stores::test_compiled_queries_keep_no_connection_of_an_ended_thread",
    ),
    (
        "name the user in the UPDATE that decides",
        "tokens/database_store.py",
        (
            '        statement = "UPDATE {table} SET {used_at} = %(now)s, {session_seal} = '
            "''\"\n"
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
        " or mask(bound) != bound:",
        ":",
        "tokens::test_path_that_contains_a_token_is_refused_and_not_stored",
    ),
    (
        "compare paths with their percent-escapes",
        "tokens/issuing.py",
        "bound_path(unquote(path))",
        "bound_path(path)",
        "tokens::test_name_in_a_path_is_bound_with_and_without_percent_escapes",
    ),
    (
        "compare paths with FORCE_SCRIPT_NAME",
        "tokens/shape.py",
        '        return plain.removeprefix(prefix) or "/"\n',
        "        return plain\n",
        "views::test_force_script_name_is_in_no_bound_path",
    ),
    (
        "unescape the path of a connection that the server has unescaped",
        "gate/handshake.py",
        'return bound_path(scope["path"], token,',
        'return bound_path(__import__("urllib.parse").parse.unquote(scope["path"]), token,',
        "middleware::test_token_of_one_name_opens_no_other",
    ),
    (
        "unescape the path twice for a token of the endpoint",
        "views.py",
        "    return quote(_without_prefixes(unquote(path), request, url))\n",
        "    return _without_prefixes(unquote(path), request, url)\n",
        "views::test_page_of_any_name_gets_a_token_for_it",
    ),
    (
        "remove FORCE_SCRIPT_NAME twice",
        "views.py",
        '"" if settings.FORCE_SCRIPT_NAME else ',
        "",
        "views::test_force_script_name_is_removed_from_the_path_once",
    ),
    (
        "hide a name that looks like a token from the consumer",
        "gate/handshake.py",
        "    elif mask(path := _local_path(scope, found[0])) != path:\n",
        "    elif (path := _local_path(scope, found[0])) is None:\n",
        "routes::test_name_that_looks_like_a_token_is_refused",
    ),
    (
        "bind tokens to prefixes that the proxy removes",
        "views.py",
        "    for prefix in (removed, mounted",
        '    for prefix in ("", mounted',
        "views::test_prefix_that_a_proxy_removes_is_removed_from_the_path",
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
    # Connections that are decided together
    (
        "let each connection of a batch have the verdict of its neighbour",
        "gate/together.py",
        "check = self._checks[number]",
        "check = self._checks[number - 1]",
        "together::test_a_batch_takes_one_select_and_one_update",
    ),
    (
        "judge each connection of a batch by the session of the first",
        "gate/sessions.py",
        "found.get(key, (",
        "found.get(next(iter(wanted)), (",
        "together::test_a_batch_with_sessions_takes_one_more_select",
    ),
    (
        "let a batch end the session of a neighbour",
        "tokens/database_store.py",
        "When(digest=digest, then=",
        "When(digest__isnull=False, then=",
        "together::test_logout_of_a_neighbour_refuses_nobody_else",
    ),
    (
        "refuse only one of the tokens of a lost session",
        "gate/decision.py",
        "    for check in passed:\n",
        "    for check in passed[:1]:\n",
        "together::test_lost_session_is_that_of_its_own_connection_only",
    ),
    (
        "decide about two connections with one token in one batch",
        "gate/waiting.py",
        "                batch[request.digest] = request, future",
        "                batch[str(len(batch))] = request, future",
        "together::test_first_of_several_waiting_connections_with_one_token_wins",
    ),
    (
        "accept what another connection has redeemed since the SELECT of the batch",
        "gate/together.py",
        "check.reason is None and check.request.digest not in redeemed:",
        "False:",
        "together::test_token_that_was_revoked_meanwhile_is_refused",
    ),
    (
        "redeem a token of a batch more than once",
        "tokens/database_store.py",
        "WHERE {used_at} IS NULL AND {digest} IN",
        "WHERE {digest} IN",
        "together::test_one_of_several_batches_redeems_a_token_in_the_database",
    ),
    (
        "ignore which keys a batch has deleted from the cache",
        "tokens/cache_store.py",
        "            if is_deleted and all(",
        "            if all(",
        "together::test_one_of_several_batches_redeems_a_token_in_redis",
    ),
    (
        "ignore the epochs of the tokens of a batch",
        "tokens/cache_store.py",
        "epochs.get(key) == epoch for",
        "True for",
        "together::test_random_connections_get_the_same_from_redis_together_and_alone",
    ),
    (
        "redeem the refused tokens of a batch too",
        "gate/together.py",
        "passed = [each for each in self._present() if each.reason is None]",
        "passed = self._present()",
        "together::test_a_batch_of_refusals_writes_nothing",
    ),
    (
        "decide about the user of a site's backend in a batch",
        "gate/together.py",
        "backend_path(check.sign_in, check.row) != MODEL_BACKEND:",
        "False:",
        "together::test_user_of_a_backend_of_the_site_is_left_to_the_single_decision",
    ),
    (
        "run the receivers of a batch in one context",
        "gate/together.py",
        "    context = request.context.copy()\n",
        "    context = copy_context()\n",
        "together::test_receivers_run_in_the_context_of_their_own_connection",
    ),
    (
        "let a batch redeem the token of a client that has left",
        "gate/waiting.py",
        "            if future.done():\n                # The",
        "            if False:\n                # The",
        "together::test_cancelled_connection_of_a_batch_harms_no_other",
    ),
    (
        "let connections wait for trips that hang",
        "gate/waiting.py",
        "call_later(_PATIENCE, self._start_late)",
        "time()",
        "together::test_trips_that_hang_do_not_keep_the_others_waiting",
    ),
    (
        "refuse all connections of a batch that PostgreSQL has undone",
        "tokens/database_store.py",
        "            return set()\n",
        "            raise\n",
        "together::test_batch_that_the_database_undoes_redeems_each_token_alone",
    ),
    (
        "refuse a token as unavailable that changes at REPEATABLE READ",
        "tokens/database_store.py",
        "_ATTEMPTS = 3",
        "_ATTEMPTS = 1",
        "together::test_batch_that_the_database_undoes_redeems_each_token_alone",
    ),
    (
        "issue a token for the session of an inactive user",
        "gate/sign_in.py",
        "return user if user is not None and backend.user_can_authenticate(user) else None",
        "return user",
        "stores::test_session_of_an_inactive_or_deleted_user_requests_no_token",
    ),
    # The user after the connect
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
        "created_at__gt=kept_since(database_clock.now())",
        "created_at__gt=clock.now() - timedelta(seconds=1)",
        "connections::test_timer_reads_rows_that_were_committed_out_of_order",
    ),
    (
        "judge revocations by the clock of the process",
        "gate/database_clock.py",
        "_STATEMENTS.get(connection.vendor)",
        "None",
        "revocations::test_disconnect_ends_sockets_though_clocks_differ",
    ),
    (
        "use the database's time after this machine's clock was set",
        "gate/database_clock.py",
        " and abs(time.time() - self.wall - age) < _MAX_SHIFT",
        "",
        "revocations::test_database_is_asked_again_if_its_answer_is_old_or_the_clock_was_set",
    ),
    (
        "give the row of a long transaction the time of the call",
        "gate/revocations.py",
        "each.created_at < begin]",
        "False]",
        "revocations::test_disconnect_in_a_long_transaction_has_the_time_of_the_commit",
    ),
    (
        "lose a logout whose tokens cannot be deleted",
        "gate/revocations.py",
        "        if not is_final:\n            raise\n",
        "        raise\n",
        "revocations::test_logout_is_recorded_though_its_tokens_cannot_be_deleted",
    ),
    (
        "let a savepoint share the events of its transaction",
        "live/batch.py",
        "_batches_of(connection), open_savepoints(connection)",
        "_batches_of(connection), frozenset()",
        "events::test_savepoint_that_is_rolled_back_publishes_nothing",
    ),
    (
        "add events to a batch that was rolled back",
        "live/batch.py",
        "if batch is not None and runs_at_commit(connection, batch.publish):",
        "if batch is not None:",
        "events::test_transaction_after_one_that_was_rolled_back_publishes_its_own_events",
    ),
    (
        "read no rows after an event without content",
        "live/hub.py",
        "            self.recheck.check_soon()\n",
        "            pass\n",
        "events::test_event_without_content_lets_each_process_read_the_rows",
    ),
    (
        "let every caller wait for a layer that hangs",
        "live/broadcast.py",
        "if _skipped_until.get(layer, 0) > time.monotonic():",
        "if False:",
        "events::test_layer_that_hangs_delays_one_caller_only",
    ),
    (
        "queue events of all groups together",
        "live/sender.py",
        "self._queues[group].put(",
        "self._queues[broadcast.PUSHES].put(",
        "events::test_full_queue_of_pushes_neither_drops_nor_delays_a_logout",
    ),
    (
        "send queued pushes before revocations",
        "live/sender.py",
        "groups = broadcast.REVOCATIONS, broadcast.TOPICS, broadcast.PUSHES",
        "groups = broadcast.PUSHES, broadcast.TOPICS, broadcast.REVOCATIONS",
        "events::test_full_queue_of_pushes_neither_drops_nor_delays_a_logout",
    ),
    (
        "let a cancellation by the layer end the listener",
        "live/broadcast.py",
        "message, receiving = _result_of(receiving), None",
        "message, receiving = receiving.result(), None",
        "broadcast::test_cancellation_by_the_layer_does_not_end_a_listener",
    ),
    (
        "raise a cancellation by the layer in the caller",
        "live/broadcast.py",
        "        return _result_of(task)",
        "        return task.result()",
        "events::test_cancellation_by_the_layer_does_not_reach_a_caller",
    ),
    (
        "end the thread that sends at an exception of the layer",
        "live/sender.py",
        "            except BaseException:",
        "            except Exception:",
        "events::test_thread_goes_on_after_any_exception_of_the_layer",
    ),
    (
        "use a thread that has died",
        "live/sender.py",
        "not (self._thread.is_alive() or self._is_stopping)",
        "False",
        "events::test_thread_that_has_died_is_replaced",
    ),
    (
        "wait for the layer in a running event loop",
        "live/sender.py",
        "if has_parent_loop() and not is_in_loop:",
        "if True:",
        "events::test_user_can_be_saved_in_a_running_loop",
    ),
    (
        "do not ask whether the session of a token still exists, at connect",
        "gate/decision.py",
        "    lost = lost_sessions(each.principal for each in passed if each.principal is not None)",
        "    lost = set()",
        "bound_tokens::test_token_of_a_session_that_has_ended_opens_nothing",
    ),
    (
        "do not ask whether the session of a token has ended, in a guarded call",
        "gate/freshness.py",
        "elif token_user is not None and _has_session_ended(connection):",
        "elif False:",
        "bound_tokens::test_guard_denies_a_call_after_the_session_of_the_token_has_ended",
    ),
    (
        "seal a session key with the digest of the token",
        "tokens/issuing.py",
        'seal(key or "", token.text)',
        'seal(key or "", digest_of(token.text))',
        "bound_tokens::test_row_of_a_bound_token_does_not_contain_the_session_key",
    ),
    (
        "keep the seal of a redeemed token",
        "tokens/database_store.py",
        ", {session_seal} = ''\"",
        '"',
        "bound_tokens::test_seal_is_deleted_when_the_token_is_redeemed",
    ),
    (
        "keep a deleted user's tokens in the cache",
        "tokens/redeeming.py",
        "    if not isinstance(current_store(), DatabaseTokenStore):",
        "    if False:",
        "stores::test_token_of_a_deleted_user_serves_no_later_user_with_the_same_key",
    ),
    (
        "forget the tokens of a new user at the commit",
        "live/receivers.py",
        "        redeeming.forget_user(key_of_user(instance))",
        (
            "        user_id = key_of_user(instance)\n"
            "        transaction.on_commit(lambda: redeeming.forget_user(user_id), using=using)"
        ),
        "stores::test_token_of_a_user_who_was_added_in_the_same_transaction_is_valid",
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
        "middleware::test_two_tokens_in_path_and_offer_are_refused_and_stay_unused",
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
        "live/send_side.py",
        'if protocol.is_sendable_code(message.get("code")):',
        "if False:",
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
        'value.count(b"\\\\") > _MAX_BACKSLASHES',
        "False",
        "middleware::test_cookies_with_thousands_of_backslashes_are_left_out",
    ),
    (
        "unescape cookies of any size",
        "gate/admission.py",
        "limit = 0 if has_many else _MAX_ESCAPED_SIZE",
        "limit = 0 if has_many else len(value)",
        "middleware::test_large_cookies_with_backslashes_are_left_out",
    ),
    (
        "read subprotocols of any length",
        "gate/handshake.py",
        " if len(name) <= _MAX_NAME]",
        "]",
        "routes::test_long_subprotocols_are_left_out",
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
        "        scope=_mask_scope(scope),\n",
        "        scope=dict(scope),\n",
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
            "        verdict = await waiting.decide(request)\n"
        ),
        (
            "        request = admission.request_of(arrival, token_only=self.token_only)\n"
            "        verdict = await waiting.decide(request)\n"
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
    (
        "name a remedy for the Origin that is in use already",
        "testing/origin.py",
        "    if current is not None:\n",
        "    if False:\n",
        "asgi::test_refusal_by_the_current_hosts_names_the_setting",
    ),
    (
        "put no Origin check around the gate of a site",
        "asgi.py",
        "    return _CurrentHostsValidator(gate, needs_origin=not (token_only and required))",
        "    return gate",
        "asgi::test_one_call_has_origin_check_gate_and_routes",
    ),
    (
        "accept no Origin at a gate that trusts cookies",
        "asgi.py",
        "needs_origin=not (token_only and required)",
        "needs_origin=not token_only",
        "asgi::test_only_a_gate_without_cookies_accepts_no_origin",
    ),
    (
        "parse an Origin of any length",
        "asgi.py",
        "    if len(value) > _MAX_ORIGIN:\n",
        "    if False:\n",
        "asgi::test_unreadable_origin_is_refused_unparsed",
    ),
    (
        "answer an Origin that is no URL with an exception",
        "asgi.py",
        "        except ValueError:\n            is_valid = False\n",
        "        except ZeroDivisionError:\n            is_valid = False\n",
        "asgi::test_unreadable_origin_is_refused_unparsed",
    ),
    (
        "parse the Origin of a handshake that is too large",
        "asgi.py",
        "        if is_too_large(scope):\n",
        "        if False:\n",
        "asgi::test_handshake_that_is_too_large_is_refused_before_its_origin_is_read",
    ),
    (
        "let pages of every site use cookies if every host is allowed",
        "asgi.py",
        'if self.needs_origin and "*" in hosts:',
        "if False:",
        "asgi::test_origin_must_have_the_host_of_the_site_if_every_host_is_allowed",
    ),
    (
        "take a validator that allows every Origin for a check",
        "checks/deployment.py",
        'not (is_of_channels and "*" in allowed_origins_of(layer))',
        "True",
        "checks::test_origin_validator_that_allows_every_origin_is_found",
    ),
    (
        "accept every Origin at a gate for apps",
        "asgi.py",
        "        if not found and not self.needs_origin:",
        "        if not self.needs_origin:",
        "asgi::test_gate_without_cookies_refuses_the_pages_of_other_sites",
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
        "live/send_side.py",
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
        "queue any number of messages",
        "live/outbox.py",
        "len(self._queue) >= MAX_WAITING or ",
        "",
        "outbox::test_message_for_a_full_outbox_is_not_kept",
    ),
    (
        "count the messages of an outbox and not their bytes",
        "live/outbox.py",
        ' or self._bytes + size > get_setting("MAX_OUTGOING")',
        "",
        "outbox::test_bytes_are_bounded_and_not_only_messages",
    ),
    (
        "count the pushes that wait for a check, and not their size",
        "live/delivery.py",
        " or self._size >= SIZE",
        "",
        "late::test_waiting_pushes_are_bounded_by_their_size",
    ),
    (
        "finish a message after a revocation",
        "live/outbox.py",
        "            self._task.cancel()\n",
        "            pass\n",
        "outbox::test_discarded_messages_are_not_sent_even_if_the_server_has_begun",
    ),
    (
        "drain the outbox of an own close after a revocation",
        "live/connection.py",
        (
            "        # Also if the consumer's own close has yet to send it.\n"
            "        self._outbox.discard()\n"
        ),
        "",
        "send_side::test_revocation_discards_what_an_own_close_has_to_send",
    ),
    (
        "discard what a consumer sends before it returns",
        "middleware.py",
        "            await connection.drain()\n",
        "",
        "send_side::test_messages_before_the_return_of_a_consumer_are_sent",
    ),
    (
        "end a connection for a push after the return of its consumer",
        "live/send_side.py",
        "        if self.ended or self._outbox.is_closed:",
        "        if self.ended:",
        "send_side::test_messages_before_the_return_of_a_consumer_are_sent",
    ),
    (
        "let a short message overtake one that waits for the client",
        "live/send_side.py",
        "not self._outbox.waiting and ",
        "",
        "send_side::test_short_message_does_not_overtake_one_that_waits",
    ),
    (
        "do not end a wait for a client that takes nothing",
        "live/outbox.py",
        "        timer = loop.call_later(SEND_TIMEOUT, stall)",
        "        timer = loop.call_later(1000 * SEND_TIMEOUT, stall)",
        "send_side::test_handler_waits_no_longer_than_the_limit",
    ),
    (
        "let a sync connect() wait for its client",
        "threads.py",
        'work.pool == "handlers" and ',
        "",
        "send_side::test_sync_connect_does_not_wait",
    ),
    (
        "wait for a client with a connection that the thread cannot give back",
        "threads.py",
        " and not work.keeps_connection()",
        "",
        "send_side::test_handler_whose_thread_cannot_give_its_connection_back_does_not_wait",
    ),
    (
        "keep the connection of a database pool while a handler waits for its client",
        "threads.py",
        "        if await sync_to_async(give_back_connections)():\n",
        "        if False:\n",
        "send_side::test_handler_that_waits_for_its_client_holds_no_connection_of_a_pool",
    ),
    (
        "let a transaction of a Channels consumer with a thread of its own wait for a client",
        "database_connections.py",
        "            has_transaction = True\n",
        "            pass\n",
        "send_side::test_plain_sync_consumer_in_a_transaction_does_not_wait",
    ),
    (
        "let a handler wait for its client in the last thread",
        "threads.py",
        '    if _at_work["handlers"] >= get_setting("SYNC_THREADS"):',
        "    if False:",
        "send_side::test_only_thread_of_a_pool_does_not_wait",
    ),
    (
        "let the streams of one client take all threads",
        "messaging/open_streams.py",
        "    return max(1, threads // 4)",
        "    return threads",
        "send_side::test_blocking_generators_of_one_client_leave_threads_to_others",
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
        "        if self.recheck.known.has_ended(principal.session_digest):",
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
        "        if self.knowledge.is_grace_over():",
        "        if False:",
        "connections::test_sockets_end_when_the_database_stays_unavailable",
    ),
    (
        "handle messages that arrive after a pause of the process",
        "live/connection.py",
        "                and late.is_stale()\n",
        "                and False\n",
        "late::test_message_after_a_pause_is_not_handled_if_the_user_was_disconnected",
    ),
    (
        "handle a message that Channels held during a pause",
        "messaging/dispatch.py",
        "        must_look = not self._is_direct\n",
        "        must_look = False\n",
        "late::test_message_that_channels_held_during_the_pause_is_not_handled",
    ),
    (
        "handle a message that waited for a thread during a pause",
        "messaging/dispatch.py",
        "            late.wait_in_thread()\n",
        "            pass\n",
        "late::test_message_that_waits_for_a_thread_during_the_pause_is_not_handled",
    ),
    (
        "handle a message behind one that blocked the event loop after their check",
        "live/lateness.py",
        "            if not self.is_stale():\n                return\n            yield\n",
        "            if self.is_stale():\n                yield\n            return\n",
        "late::test_message_behind_one_that_blocks_the_event_loop_waits_again",
    ),
    (
        "do not look at the wall clock",
        "live/age.py",
        " or time.time() - self._wall >= limit",
        "",
        "late::test_message_after_a_pause_is_not_handled_if_the_user_was_disconnected",
    ),
    (
        "trust a check that began before the pause",
        "live/lateness.py",
        "check.cancelled() and is_new and not has_paused:",
        "check.cancelled():",
        "late::test_check_that_began_before_the_pause_does_not_count",
    ),
    (
        "count the age of a connection from its opening on",
        "live/recheck.py",
        "            self.knowledge.begin(registered)\n",
        "            self.knowledge.begin(Age())\n",
        "late::test_pause_between_the_decision_and_the_opening_refuses_the_connection",
    ),
    (
        "open a connection whose decision is too old",
        "middleware.py",
        "        await connection.until_fresh()\n",
        "",
        "late::test_pause_between_the_decision_and_the_opening_refuses_the_connection",
    ),
    (
        "run a connect that waited for a thread during a pause",
        "messaging/dispatch.py",
        '        if late is None or kind == "websocket.disconnect":\n',
        '        if late is None or kind != "websocket.receive":\n',
        "late::test_connect_that_waits_for_a_thread_during_the_pause_does_not_run",
    ),
    (
        "take an event of the channel layer for a ping",
        "messaging/dispatch.py",
        'if kind == "websocket.receive" and is_ping(',
        "if is_ping(",
        "late::test_event_of_the_channel_layer_waits_whatever_its_text_is",
    ),
    (
        "deliver pushes that arrive after a pause of the process",
        "live/delivery.py",
        "                while not is_late():\n",
        "                while True:\n",
        "late::test_push_after_a_pause_is_not_delivered_if_the_user_was_disconnected",
    ),
    (
        "let pings wait too",
        "live/held.py",
        '                if is_ping(received.get("text")):\n',
        "                if False:\n",
        "late::test_ping_is_answered_while_messages_wait",
    ),
    (
        "take the outage of one user for one of all",
        "gate/freshness.py",
        "    if len(found.outages) == len(asked) and asked:",
        "    if found.outages:",
        "connections::test_outage_of_one_user_hides_no_other",
    ),
    (
        "keep an unavailable user for ever",
        "live/recheck.py",
        "        lost = {each for each, since in self._unavailable.items() if is_over(since)}\n",
        "        lost = set()\n",
        "connections::test_unavailable_user_is_kept_for_the_grace_alone",
    ),
    (
        "let a CancelledError of a backend end the check",
        "gate/isolation.py",
        "            if is_interrupt(error):\n                raise\n            if",
        "            if not isinstance(error, Exception):\n                raise\n            if",
        "connections::test_user_for_whom_the_backend_raises_no_exception_class_counts_as_gone",
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
        'if fields.get("sender") == process_id():',
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
        "live/batch.py",
        "    transaction.on_commit(batch.publish, using=using)",
        "    batch.publish()",
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
        "run a call whose denial is cached",
        "messaging/calls.py",
        "if answer is None or answer[0] is not None:",
        "if answer is None:",
        "permissions::test_denial_is_cached_too",
    ),
    (
        "use a cached permission after the end of the socket",
        "messaging/calls.py",
        "    if (late is not None and late.is_stale()) or connection.drops_calls:\n",
        "    if late is not None and late.is_stale():\n",
        "permissions::test_cached_answer_runs_nothing_after_the_end_of_the_socket",
    ),
    (
        "forget the permissions of a method that auto_route decorates again",
        "messaging/methods.py",
        "        perms = own.perms if perms is None else perms\n",
        "",
        "decorators::test_body_of_a_denied_call_does_not_run",
    ),
    (
        "leave the awaitable of a method with both decorators to its caller",
        "messaging/methods.py",
        "perms=perms, has_result=True, leaves_awaitable=False)",
        "perms=perms, has_result=True)",
        "decorators::test_sync_consumer_gets_the_value_of_an_async_method_with_both_decorators",
    ),
    (
        "do not check the end of a socket again after the wait for a thread",
        "messaging/calls.py",
        "    if has_ended_in_thread(consumer):\n        return _drop(consumer)\n    return _run(",
        "    return _run(",
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
        "    permission_cache[perms] = code, user_pk, asked_at",
        (
            "    if connection is not None:\n"
            "        connection.permission_cache[perms] = code, user_pk, asked_at"
        ),
        "permissions::test_answer_from_before_the_change_is_not_cached",
    ),
    (
        "use a cached permission for another user",
        "messaging/permissions.py",
        'getattr(scope.get("user"), "pk", None) == answer[1]',
        "True",
        "permissions::test_cached_answer_is_not_used_for_another_user",
    ),
    (
        "send an answer past the send() of a mixin",
        "consumers.py",
        "cls.has_plain_class = all(PLAIN_METHODS.isdisjoint(vars(each)) for each in added)",
        "cls.has_plain_class = True",
        "consumers::test_wrapper_of_send_sees_the_answers",
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
        "        if thread.may_hold_stale():",
        "        if False:",
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
        "        await self._check(where)\n        part = ",
        "        part = ",
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
        "        if self._is_async and not self._is_sync_consumer:",
        "        if True:",
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
    # Tenants
    (
        "accept the token of another tenant",
        "tokens/redeeming.py",
        "row is None or row.tenant != TENANT",
        "row is None",
        "tenants::test_token_row_of_another_tenant_opens_no_connection",
    ),
    (
        "accept the events of another tenant",
        "live/signatures.py",
        'event.pop("tenant", None) != TENANT:',
        'event.pop("tenant", None) is None:',
        "tenants::test_event_of_another_tenant_is_dropped",
    ),
    (
        "read the revocations of another tenant",
        "gate/revocations.py",
        "    return rows.filter(tenant=TENANT)",
        "    return rows",
        "tenants::test_revocation_of_another_tenant_is_not_read_and_not_renewed",
    ),
    (
        "use one key of the cache for all tenants",
        "tokens/cache_store.py",
        "[_PREFIX, TENANT, ",
        '[_PREFIX, "", ',
        "tenants::test_token_in_the_cache_of_another_tenant_is_unknown",
    ),
    # Threads and database connections
    (
        "let the work of a thread wait for the same pool",
        "threads.py",
        "    is_nested = any(work.pool == name for work in _works_of_threads())",
        "    is_nested = False",
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
    (
        "keep connections of a database pool in idle threads",
        "threads.py",
        "pool_connections().close_unneeded()",
        "pass",
        "database_connections::test_thread_gives_its_connection_back_after_each_piece_of_work",
    ),
    (
        "keep connections of a database pool after an async handler",
        "messaging/dispatch.py",
        "thread.holds_unneeded(is_last)",
        "False",
        "database_connections::test_open_socket_holds_no_connection_of_a_pool",
    ),
    (
        "keep connections of a database pool while a stream waits",
        "messaging/streams.py",
        "                    if self._is_async:\n                        await aclose",
        "                    if False:\n                        await aclose",
        "database_connections::test_stream_that_waits_for_its_client_holds_no_connection_of_a_pool",
    ),
    (
        "keep connections that are older than CONN_MAX_AGE after the end of a socket",
        "database_connections.py",
        "(is_last and is_too_old(connection))",
        "False",
        "database_connections::test_connection_of_the_async_orm_is_kept_as_conn_max_age_says",
    ),
    (
        "keep the threads' connections to a test database",
        "threads.py",
        "    if has_no_database(connection):",
        "    if False:",
        "database_connections::test_threads_end_before_a_test_database_is_dropped",
    ),
    (
        "let a blocked handler stop the end of a test run",
        "threads.py",
        "thread.join(max(0, deadline - monotonic()))",
        "thread.join()",
        "database_connections::test_handler_that_blocks_does_not_stop_the_end_of_a_test_run",
    ),
    (
        "leave the connections of a thread that has ended to the garbage collector",
        "database_connections.py",
        "            self._connections.close_all()\n",
        "            pass\n",
        "database_connections::test_connection_is_closed_although_a_context_still_refers_to_it",
    ),
    (
        "close the connections of the parent in a forked process",
        "database_connections.py",
        "        if threading.get_ident() == self._thread:",
        "        if True:",
        "database_connections::test_fork_keeps_the_connections_of_its_parent",
    ),
    (
        "drop a test database while a thread of a replaced pool is connected",
        "threads.py",
        "        if thread.name.startswith(_PREFIX) and",
        "        if False and",
        "database_connections::test_threads_of_replaced_and_short_pools_end_too",
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
        "render no identity of the page's user",
        "templatetags/websocket_utils.py",
        '        "data-identity": _identity(context, _is_of_session(url, bool(token))),\n',
        "",
        "templatetags::test_identity_of_the_pages_user_is_the_one_of_the_token_endpoint",
    ),
    (
        "render the identity of the request's user instead of the session's",
        "templatetags/websocket_utils.py",
        "        return found or identity_of(",
        "        return identity_of(",
        "templatetags::test_identity_is_not_that_of_another_user_of_the_page",
    ),
    (
        "render the identity of the session's user for every endpoint",
        "templatetags/websocket_utils.py",
        "    is_read = is_of_session and isinstance(",
        "    is_read = isinstance(",
        "templatetags::test_identity_is_that_of_the_user_whom_the_endpoint_names",
    ),
    (
        "take an endpoint of the site for the included one",
        "templatetags/websocket_utils.py",
        " and not is_valid_path(path))",
        ")",
        "templatetags::test_endpoint_of_the_site_whose_path_ends_like_the_included_one_is_its_own",
    ),
    (
        "do not quote a part of the path",
        "templatetags/websocket_utils.py",
        'quote(text, safe="")',
        "text",
        "templatetags::test_parts_of_the_path_are_joined_and_quoted",
    ),
    (
        "let the page read the cookie that CSRF_USE_SESSIONS has made useless",
        "templatetags/websocket_utils.py",
        "    cookie = True if settings.CSRF_USE_SESSIONS else ",
        "    cookie = ",
        "templatetags::test_names_of_the_csrf_settings_are_rendered",
    ),
    (
        "allow caches to keep tokens",
        "views.py",
        "@never_cache\n",
        "",
        "views::test_answers_are_not_cached",
    ),
    # Checks
    (
        "do not report an application that cannot be imported",
        "checks/application.py",
        "        # A warning, because commands such as migrate must run without the application.\n",
        "        return []\n",
        "checks::test_application_that_cannot_be_imported_is_found_with_its_line",
    ),
    (
        "report pushes of commands only without a channel layer",
        "checks/pushes.py",
        "    if layer is not None and not issubclass(layer, InMemoryChannelLayer):\n",
        "    if layer is not None:\n",
        "checks::test_command_that_pushes_without_a_shared_layer_is_found",
    ),
    (
        "do not log a push that reaches nobody",
        "live/events.py",
        "    _has_reported = True\n    logger.warning(",
        "    _has_reported = True\n    logger.debug(",
        "events::test_push_of_a_process_that_reaches_no_connection_is_logged_once",
    ),
    (
        "take every error of the database for a missing migration",
        "outages.py",
        "    if not isinstance(error, db.Error):\n        return False\n",
        "    if isinstance(error, db.Error):\n        return True\n",
        "outages::test_other_outages_lack_no_migration",
    ),
    # Refusals
    (
        "warn about each refusal in production",
        "gate/refusals.py",
        "logging.WARNING if settings.DEBUG else logging.DEBUG",
        "logging.WARNING",
        "refusals::test_refusal_is_logged_with_the_remedy_as_a_warning_in_development",
    ),
    (
        "do not log a consumer that never accepts",
        "live/connection.py",
        '        if self.state is PENDING:\n            log_refusal("not_accepted")\n',
        "",
        "refusals::test_consumer_that_never_accepts_is_logged_when_the_client_leaves",
    ),
    (
        "blame the consumer for what the gate refuses",
        "live/connection.py",
        "        if not self.ended:\n            self._change_state(REJECTED)",
        '        if not self.ended:\n            log_refusal("rejected")\n'
        "            self._change_state(REJECTED)",
        "refusals::test_refusal_is_logged_with_the_remedy_as_a_warning_in_development",
    ),
    # The command "websockets"
    (
        "leave the session of a trial in the database",
        "management/trial.py",
        "            if session is not None:\n                await sync",
        "            if session is None:\n                await sync",
        "websockets_command::test_trial_opens_a_connection_and_reports_each_step",
    ),
    (
        "report a refused trial as a success",
        "management/commands/websockets.py",
        "            raise CommandError(str(error)) from error\n",
        "            self.stdout.write(str(error))\n",
        "websockets_command::test_trial_of_an_inactive_user_names_reason_and_remedy",
    ),
    (
        "show no permissions in the overview",
        "management/overview.py",
        "if (perms := perms_of(function)) else",
        "if (perms := ()) else",
        "websockets_command::test_overview_names_routes_gates_consumers_and_permissions",
    ),
    (
        "show no permissions of topics in the overview",
        "management/overview.py",
        "perms = list(topic.permissions or ())",
        "perms: list[str] = []",
        "websockets_command::test_overview_names_topics_and_who_may_subscribe",
    ),
    (
        "show a topic that nobody has restricted as one for any user",
        "management/overview.py",
        "if not topic.is_restricted():",
        "if False:",
        "websockets_command::test_overview_names_a_topic_to_which_nobody_may_subscribe",
    ),
    # Topics: publishing and history
    (
        "recover one message too few",
        "topics/history.py",
        "    if len(messages) != min(missed, _MAX_COUNT + 1):",
        "    if len(messages) < min(missed, _MAX_COUNT + 1) - 1:",
        "topic_history::test_messages_beyond_the_size_have_expired",
    ),
    (
        "expect one message less than was missed",
        "topics/history.py",
        "    missed = present.offset - since.offset\n",
        "    missed = present.offset - since.offset - 1\n",
        "topic_history::test_page_receives_what_it_missed",
    ),
    (
        "recover from an empty epoch",
        "topics/history.py",
        "    if not since.epoch or since.epoch != present.epoch or",
        "    if (since.epoch and since.epoch != present.epoch) or",
        "topic_history::test_other_epoch_is_not_recovered",
    ),
    (
        "recover from a position beyond the top",
        "topics/history.py",
        "or since.offset > present.offset:",
        "or False:",
        "topic_history::test_offset_beyond_the_top_is_not_recovered",
    ),
    (
        "compare with the database what a client sends as an epoch",
        "topics/history.py",
        "    return rows.is_epoch(since.epoch) and since.offset <= _MAX_OFFSET - _MAX_COUNT",
        "    return True",
        "topic_history::test_position_that_cannot_exist_is_not_part_of_a_statement",
    ),
    (
        "show a user the history from before the user's time",
        "topics/history.py",
        "        if time is None or self.oldest is None or self.oldest >= time:\n",
        "        if True:\n",
        "topics_subscribing::test_user_reads_no_message_from_before_the_users_time",
    ),
    (
        "read the texts of a replay that is too long",
        "topics/history.py",
        "    is_short = When(size__lte=MAX_REPLAY,",
        "    is_short = When(size__gte=0,",
        "topic_history::test_texts_that_are_too_long_together_are_not_read",
    ),
    (
        "announce a gap for what has arrived during a read",
        "topics/feed.py",
        "            bound = missed.position\n",
        "            pass\n",
        "topics_delivery::test_message_that_arrives_during_a_read_is_no_gap",
    ),
    (
        "read as many texts as a message has topics",
        "topics/history.py",
        "total__lte=MAX_READ,",
        "total__gte=0,",
        "topic_history::test_texts_of_all_topics_of_one_statement_are_limited_together",
    ),
    (
        "keep one message more than history_size",
        "topics/rows.py",
        'F("topic__top") - topic.history_size)',
        'F("topic__top") - topic.history_size - 1)',
        "topic_history::test_messages_beyond_the_size_have_expired",
    ),
    (
        "prune by time alone, without the form that names an offset",
        "topics/rows.py",
        "rows.filter(offset__lt=Greatest(first_young, Value(top - size + 1)))",
        "rows.filter(Q(created_at__lt=before) | Q(offset__lte=top - size))",
        "topic_history::test_pruning_never_leaves_a_hole",
    ),
    (
        "give a new topic the generation from before it waited",
        "topics/rows.py",
        "    if top == 1 and epoch.startswith(_GIVEN):",
        "    if False:",
        "topic_publishing::test_new_topic_has_the_generation_of_its_commit",
    ),
    (
        "keep the generation when topics are deleted",
        "topics/rows.py",
        "        topics().filter(key=GENERATION).update(epoch=_new_epoch(_GIVEN), "
        "published_at=clock.now())\n",
        "",
        "topic_history::test_topic_that_was_deleted_begins_with_a_new_generation",
    ),
    (
        "lock idle topics by the index of their time",
        "topics/rows.py",
        "topics().filter(key__in=sorted(keys))",
        "idle(before).filter(key__in=sorted(keys))",
        "topic_history::test_deletion_locks_topics_by_their_key_alone",
    ),
    (
        "delete a topic that was published to since it was found idle",
        "topics/rows.py",
        "key, published_at in times if published_at < before]",
        "key, published_at in times]",
        "topic_history::test_topic_that_is_published_to_during_the_deletion_is_not_deleted",
    ),
    (
        "check one of the ways to a consumer with topics",
        "checks/topics.py",
        "found.get(consumer, True) and is_gated",
        "found.get(consumer, False) or is_gated",
        "topic_site::test_one_way_without_the_gate_is_found",
    ),
    (
        "look for a common name among those of the first route only",
        "topics/route.py",
        "names = [*self._names(texts), *other._names(texts)]",
        "names = [*self._names([])]",
        "topic_site::test_classes_with_a_name_in_common_are_found",
    ),
    (
        "keep the epoch when a topic is cleared",
        "topics/rows.py",
        ".update(epoch=epoch, top=0, published_at=clock.now()):",
        ".update(top=0, published_at=clock.now()):",
        "topic_history::test_clear_and_its_epoch",
    ),
    (
        "read the top and write it back without a lock",
        "topics/rows.py",
        "    found = [_raise_top(topic, present) for topic, _ in entries]\n",
        "    found = []\n"
        "    for topic, _ in entries:\n"
        "        old = topics().filter(key=topic.key).first()\n"
        "        if old is None:\n"
        "            found.append(_raise_top(topic, present))\n"
        "        else:\n"
        "            topics().filter(key=topic.key).update(top=old.top + 1)\n"
        "            found.append((old.epoch, old.top + 1))\n",
        "topic_publishing::test_publish_begins_with_a_write",
    ),
    (
        "lock the topics of publish_many in the order of the caller",
        "topics/publishing.py",
        "        key=lambda index: messages[index][0].key,\n",
        "        key=lambda index: 0,\n",
        "topic_publishing::test_publish_many_locks_the_topics_in_the_order_of_their_keys",
    ),
    (
        "publish in another thread than the caller's transaction",
        "callers.py",
        "    return sync_to_async(function) if is_under_thread() else in_pool(function)",
        "    return in_pool(function)",
        "topic_publishing::test_async_publish_under_async_to_sync_is_part_of_the_callers_transaction",
    ),
    (
        "publish in the pool of the gate",
        "callers.py",
        '    return _in_pool(function, "publish", PUBLISH_THREADS)',
        "    return in_our_pool(function)",
        "topic_publishing::test_publishes_that_wait_for_a_lock_delay_no_other_work_of_the_package",
    ),
    (
        "give two classes with one name the same topic",
        "topics/base.py",
        "json.dumps([TENANT, self.label, self.name])",
        "json.dumps([TENANT, self.name])",
        "topic_names::test_topics_of_two_classes_with_one_name_have_two_keys",
    ),
    (
        "accept a name that does not render to itself",
        "topics/route.py",
        "        return values if is_canonical else None",
        "        return values",
        "topic_names::test_name_that_does_not_render_to_itself_is_no_topic",
    ),
    (
        "let a failed publish leave an offset without its message",
        "topics/publishing.py",
        "transaction.atomic(using=using, savepoint=False) if order else",
        "nullcontext() if order else",
        "topic_publishing::test_caller_cannot_commit_an_offset_without_its_message",
    ),
    # Topics: who may subscribe
    (
        "deliver the messages of a topic before the user is authorized",
        "topics/subscription.py",
        "        if self.state is not LIVE:\n            self._keep(frame)\n",
        "        if self.state is SUBSCRIBING:\n            self._push(frame)\n",
        "topics_recovery::test_message_between_the_read_and_the_reply_follows_the_reply",
    ),
    (
        "answer every user with yes",
        "topics/authorization.py",
        "            found = answer if answers_for_many else some * bool(answer)\n",
        "            found = some\n",
        "topics_authorization::test_topics_that_the_user_may_not_read_are_refused_one_by_one",
    ),
    (
        "let everybody read a topic that nobody has restricted",
        "topics/authorization.py",
        "topic_class.is_restricted() and ",
        "",
        "topics_authorization::test_topic_that_nobody_has_restricted_is_refused",
    ),
    (
        "forget an event that names the user during the subscribe",
        "topics/topic_hub.py",
        "            subscription.is_doubtful = True\n",
        "            pass\n",
        "topics_authorization::test_permission_lost_during_the_subscribe_repeats_the_question",
    ),
    (
        "do not ask again after a change of a permission",
        "live/receivers.py",
        "    doubt_users_at_commit(users, using)\n",
        "",
        "topics_authorization::test_permission_that_is_taken_away_ends_the_subscription",
    ),
    (
        "do not ask again after a change of the user",
        "live/receivers.py",
        "    doubt_users_at_commit([user], using)\n",
        "",
        "topics_authorization::test_permission_that_is_taken_away_ends_the_subscription",
    ),
    (
        "ask again with the user of the connect",
        "topics/authorization.py",
        "load_user(*user_key)",
        "vars(_decide).setdefault(user_key, load_user(*user_key))",
        "topics_authorization::test_user_is_read_from_the_database_at_the_subscribe",
    ),
    (
        "deliver while the user is asked about again",
        "topics/topic_hub.py",
        "            subscription.change_state(HELD)\n        elif",
        "            self._reauthorization.ask([subscription])\n        elif",
        "topics_authorization::test_remove_then_publish_never_reaches_the_removed_user",
    ),
    (
        "publish messages before the doubts of the same transaction",
        "live/topic_batch.py",
        "        or batch.savepoints != savepoints\n",
        "",
        "topics_authorization::test_message_of_an_earlier_savepoint_does_not_carry_a_later_one",
    ),
    (
        "send what waits in the outbox after a denial",
        "topics/topic_hub.py",
        "        connection.discard(subscription)\n",
        "",
        "topics_authorization::test_denial_takes_back_what_waits_in_the_outbox",
    ),
    (
        "forget the recheck_interval of a class",
        "topics/topic_hub.py",
        "        self._ask_classes(self._due())\n",
        "",
        "topics_authorization::test_recheck_interval_of_the_class_ends_the_subscription",
    ),
    (
        "let code of the site that hangs keep its turn",
        "topics/authorization.py",
        "asyncio.wait({asking}, timeout=LIMIT / _STEPS)",
        "asyncio.wait({asking})",
        "topics_authorization::test_answer_that_takes_too_long_is_a_refusal_and_blocks_nobody",
    ),
    (
        "deliver after a stop of the process before the users are asked about again",
        "topics/topic_hub.py",
        "            self._hub.delivery.put(self._of_classes(late), self._doubt, is_first=True)\n",
        "            self._reauthorization.ask(self._of_classes(late))\n",
        "topics_authorization::test_stopped_process_asks_before_it_delivers",
    ),
    (
        "deliver the first event after a stop of the process before the timer has noticed the stop",
        "topics/topic_hub.py",
        "            self._hold_late()\n        for message",
        "            pass\n        for message",
        "topics_authorization::test_stopped_process_asks_before_it_delivers",
    ),
    (
        "authorize before the history is read",
        "topics/subscribing.py",
        (
            "        missed = await self._read(beginning)\n"
            "        decision = await self._authorize(beginning)\n"
        ),
        (
            "        decision = await self._authorize(beginning)\n"
            "        missed = await self._read(beginning)\n"
        ),
        "topics_subscribing::test_history_is_read_before_the_user_is_authorized",
    ),
    (
        "read for a page that begins what the process has no event of, without an authorization",
        "topics/feed.py",
        "            self._doubt([subscription])\n",
        "            self.repair()\n",
        "topics_subscribing::test_page_that_begins_behind_its_process_is_authorized_again",
    ),
    (
        "answer nothing about a subscription that has ended during the subscribe",
        "topics/subscribing.py",
        " or subscription.state is ENDED:",
        ":",
        "topics_subscribing::test_reply_has_an_entry_for_a_subscription_that_has_ended_meanwhile",
    ),
    (
        "publish revocations to the group of revocations only",
        "live/batch.py",
        "        topic_batch.publish_revocations(revocation_events)\n",
        "",
        "topics_authorization::test_disconnect_then_publish_of_another_process_needs_no_order_of_"
        "two_groups",
    ),
    (
        "publish a message after a revocation in the event of a message before it",
        "live/batch.py",
        "    topic_batch.end_batch(using)\n",
        "",
        "topics_authorization::test_disconnect_then_publish_never_reaches_the_disconnected_user",
    ),
    (
        "lose the messages of an event that names a topic without subscribers",
        "topics/topic_hub.py",
        "[self._feeds.get(key)]",
        "[self._feeds[key]]",
        "topics_authorization::test_reauthorization_of_a_topic_without_subscribers_changes_nothing",
    ),
    (
        "answer a subscribe for an event loop whose connection has ended",
        "topics/topic_hub.py",
        "        for key in list(self._by_connection.get(connection, ())):\n",
        "        for key in ():\n",
        "topics_delivery::test_subscriptions_of_a_connection_that_has_ended_are_removed",
    ),
    # Topics: what arrives
    (
        "drop the messages that arrive during a subscribe",
        "topics/subscription.py",
        "            self.waiting.append(frame)\n",
        "            pass\n",
        "topics_recovery::test_message_without_history_that_arrives_during_a_subscribe_is_delivered",
    ),
    (
        "do not read again when another page has moved the position",
        "topics/feed.py",
        "        elif not is_complete or here != position:\n",
        "        elif not is_complete:\n",
        "topics_recovery::test_page_that_joins_last_misses_nothing_if_nothing_more_is_published",
    ),
    (
        "do not look for the end of a burst",
        "topics/tops.py",
        "            run_in_background(self.look(ended))\n",
        "            pass\n",
        "topics_delivery::test_tail_of_a_burst_that_was_lost_is_read",
    ),
    (
        "deliver messages whose events were lost to users who are not authorized again",
        "topics/feed.py",
        "was denied.\n        self._doubt(list(self.subscriptions.values()))\n",
        "was denied.\n        self.repair()\n",
        "topics_delivery::test_message_whose_event_is_lost_is_delivered_after_an_authorization",
    ),
    (
        "deliver over a hole, so that the database overtakes an event with a denial",
        "topics/feed.py",
        " or first == 0:",
        " or first >= 0:",
        "topics_delivery::test_event_that_overtakes_a_denial_brings_no_earlier_message",
    ),
    (
        "read the history for each page that reconnects",
        "topics/recovery.py",
        "        kept = self._kept[question] = _Kept(replay, size)\n",
        "        kept = _Kept(replay, size)\n",
        "topics_recovery::test_pages_that_come_back_one_after_the_other_share_a_read",
    ),
    (
        "deliver a message twice, in the reply and live",
        "topics/subscription.py",
        "        if frame.offset == self.offset + 1:\n",
        "        if True:\n",
        "topics_subscribing::test_message_of_the_reply_is_not_delivered_again",
    ),
    (
        "go back when an event comes twice",
        "topics/feed.py",
        "        if self._has(position):\n            return\n        here",
        "        here",
        "topics_delivery::test_event_that_comes_twice_costs_no_read",
    ),
    (
        "compare a kept answer with the database although an event has outdated it",
        "topics/recovery.py",
        " and here.offset <= present.offset",
        "",
        "topics_recovery::test_answer_is_read_again_after_a_newer_message",
    ),
    (
        "answer from memory what the database does not contain any more",
        "topics/recovery.py",
        "            elif known.replay.position == replay.position:\n",
        "            elif replay.position:\n",
        "topics_recovery::test_messages_that_another_process_has_cleared_are_replayed_to_nobody",
    ),
    (
        "replay from memory what has expired meanwhile",
        "topics/recovery.py",
        "        if is_current and is_young:\n",
        "        if is_current:\n",
        "topics_recovery::test_kept_answer_is_outdated_when_a_message_expires",
    ),
    (
        "keep texts of any length that clients have sent",
        "topics/recovery.py",
        ' or replay.reason == "epoch":',
        ":",
        "topics_recovery::test_positions_that_a_client_has_invented_are_not_kept",
    ),
    (
        "let a router that raises end the checks of topics",
        "checks/topics.py",
        "    except Exception:\n        # E010 reports",
        "    except KeyError:\n        # E010 reports",
        "tenants::test_router_that_raises_does_not_end_the_checks_of_topics",
    ),
    (
        "let the clear of a topic overtake a denial",
        "topics/feed.py",
        "        if here is not None and here.epoch != position.epoch:\n",
        "        if False:\n",
        "topics_subscribing::test_clear_does_not_overtake_a_denial",
    ),
    (
        "read histories for clients without a user",
        "topics/subscribing.py",
        "            if is_anonymous and not topic.allow_anonymous:\n",
        "            if False:\n",
        "topics_authorization::test_history_is_not_read_for_a_client_without_a_user",
    ),
    (
        "ignore the restriction of a class that is derived from one with filter_allowed()",
        "topics/base.py",
        'return owner is not BaseTopic and "filter_allowed" in vars(owner)',
        'return owner is not BaseTopic and hasattr(owner, "filter_allowed")',
        "topics_authorization::test_derived_class_restricts_what_its_base_allows",
    ),
    (
        "extend the grace of a topic by the answers about another one",
        "topics/reauthorization.py",
        "            self._outages.pop(pair, None)\n",
        "            self._outages.clear()\n",
        "topics_authorization::"
        "test_grace_of_one_topic_is_not_extended_by_the_answers_about_another",
    ),
    (
        "count the offsets of excluded connections as deliveries",
        "topics/subscription.py",
        "int(not is_excluded)",
        "1",
        "topics_recovery::test_only_messages_that_a_connection_was_sent_are_counted",
    ),
    (
        "look for all topics that one message names",
        "topics/subscribing.py",
        'islice(request.topics, get_setting("MAX_TOPICS_PER_CONNECTION"))',
        "islice(request.topics, 10**6)",
        "topics_authorization::test_message_with_thousands_of_names_costs_no_more_than_the_limit",
    ),
    (
        "give the topics of two tenants one key",
        "topics/base.py",
        "json.dumps([TENANT, self.label, self.name])",
        "json.dumps([self.label, self.name])",
        "tenants::test_topic_of_another_tenant_has_another_key",
    ),
    (
        "read positions of topics from a replica",
        "topics/rows.py",
        "    return WebSocketTopic.objects.using(alias())\n",
        "    return WebSocketTopic.objects.all()\n",
        "topics_recovery::"
        "test_positions_and_histories_are_read_from_the_database_that_is_written_to",
    ),
    (
        "take a position that is older than the query for news",
        "topics/feed.py",
        "            is_behind = here == before\n",
        "            is_behind = True\n",
        "topics_recovery::test_position_that_is_older_than_the_query_moves_no_feed",
    ),
    (
        "deny those about whom is asked while the process is stopped",
        "topics/authorization.py",
        "_STEPS = 10\n",
        "_STEPS = 1\n",
        "topics_authorization::test_process_that_is_stopped_during_the_question_denies_nobody",
    ),
    (
        "refuse all topics of a user for whom one takes too long",
        "topics/authorization.py",
        "            return Decision(decision.allowed, decision.unavailable)\n",
        "            return Decision()\n",
        "topics_authorization::"
        "test_answer_that_takes_too_long_refuses_no_topic_that_was_answered_before",
    ),
    (
        "keep a topic object for each subscription",
        "topics/topic_hub.py",
        "        topic = feed.topic\n",
        "",
        "topics_delivery::test_subscription_takes_at_most_600_bytes",
    ),
    (
        "take a long transaction for a sign of lost events",
        "topics/feed.py",
        'first = event.get("first", offset)',
        "first = offset",
        "topics_delivery::test_long_transaction_of_another_process_is_read_without_authorization",
    ),
    (
        "publish what a long transaction has removed only in the first of its events",
        "live/topic_batch.py",
        """            events.append({"kind": "topics", "doubts": doubts, "messages": []})\n""",
        """            events.append({"kind": "topics", "doubts": [], "messages": []})\n""",
        "topics_delivery::test_each_event_of_a_long_transaction_has_the_doubts",
    ),
    (
        "let any number of events wait for a blocked event loop",
        "live/inbox.py",
        "is_full = len(self._queue) >= MOST or self._size + size > SIZE",
        "is_full = False",
        "inbox::test_events_beyond_the_limit_become_ranges_of_offsets",
    ),
    (
        "drop the doubts of events that do not fit",
        "live/inbox.py",
        'self._doubts.update(dict.fromkeys((user, key) for user, key in event["doubts"]))\n',
        "pass\n",
        "inbox::test_message_without_history_is_dropped_and_its_doubt_is_not",
    ),
    (
        "let a message that does not fit overtake a revocation",
        "live/inbox.py",
        "        self._size += size\n        self._shortened = None\n",
        "        self._size += size\n",
        "inbox::test_shortened_message_does_not_overtake_a_revocation",
    ),
    (
        "announce messages of which no event was received",
        "live/short_messages.py",
        ' and first == last["offset"] + 1:',
        ":",
        "inbox::test_range_contains_only_messages_that_were_received",
    ),
    (
        "hold subscriptions behind the messages that wait",
        "live/delivery.py",
        "        if is_first:\n",
        "        if False:\n",
        "topics_delivery::test_first_delivery_precedes_those_that_wait",
    ),
    (
        "forget events that have overtaken another",
        "topics/feed.py",
        "            self._early.put(event)\n",
        "            pass\n",
        "topics_delivery::test_events_that_arrive_in_another_order_cost_no_read",
    ),
    (
        "count the events that wait for an earlier one, and not their bytes",
        "topics/early_events.py",
        "event if is_short else ",
        "event if event else ",
        "topics_delivery::test_early_events_are_bounded_in_bytes",
    ),
    (
        "let all topics read what they missed at the same time",
        "topics/feed.py",
        "        async with self._delivery.reading:\n",
        "        if True:\n",
        "topics_delivery::test_few_feeds_read_what_they_missed_at_the_same_time",
    ),
    (
        "skip a gap of a live client without a message",
        "topics/subscription.py",
        "        self.connection.push(gap, self)\n",
        "",
        "topics_delivery::test_live_client_gets_one_gap_if_the_missed_messages_are_not_kept",
    ),
    (
        "send an excluded connection the data",
        "topics/frames.py",
        "        if self.excluded and self.excluded == connection.global_id:\n",
        "        if False:\n",
        "topics_delivery::test_offset_without_data_keeps_the_order_of_an_excluded_connection",
    ),
    (
        "replay the data to an excluded connection",
        "topics/frames.py",
        "if excluded == own else",
        "if False else",
        "topics_delivery::test_replay_of_an_excluded_connection_has_the_offset_without_the_data",
    ),
    (
        "stop the hub of a subscriber without a user",
        "live/hub.py",
        "        is_empty = not self.pending and not self._anonymous\n",
        "        is_empty = not self.pending\n",
        "topics_delivery::test_anonymous_subscriber_keeps_the_hub",
    ),
    (
        "encode a message for each subscriber",
        "topics/frames.py",
        "        if self._text is None:\n",
        "        if True:\n",
        "topics_delivery::test_message_is_encoded_once_for_all_subscribers",
    ),
    (
        "let each page have a statement of its own",
        "topics/recovery.py",
        "            if taken and not (is_same and len(together) + len(questions) <= _MOST):\n",
        "            if taken:\n",
        "topics_recovery::test_pages_that_missed_the_same_cost_one_read",
    ),
    (
        "let one client put any number of subscribes into the queue",
        "topics/subscribing.py",
        "        if is_working and len(self._waiting) >= MOST_WAITING:\n",
        "        if False:\n",
        "topics_authorization::test_messages_wait_in_a_queue_of_sixteen",
    ),
    *CLIENT_WEAKNESSES,
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
    scripts = [test for test in tests if is_script(test)]
    modules = [test for test in tests if not is_script(test)]
    return (modules and await first_failure_of_pytest(copy, modules)) or (
        scripts and await first_failure_of_node(copy, scripts)
    )


async def first_failure_of_pytest(copy, tests):
    # The tests' own settings; and the copy before the package that is installed.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += (f"{file_of(test, copy)}::{test.partition('::')[2]}" for test in tests)
    code, output = await run(command, cwd=copy, env={**kept, "PYTHONPATH": str(copy)})
    if code is None:
        return "a test that hung"
    found = re.search(r"^(?:FAILED|ERROR) tests/\S+?::(\w+)", output, re.M)
    if code == 1 and found:
        return found[1]
    if code:
        raise AssertionError(output)
    return None


async def first_failure_of_node(copy, tests):
    names = [test.partition("::")[2] for test in tests]
    command = ["node", "--test", "--test-reporter=tap"]
    command += (f"--test-name-pattern=^{re.escape(name)}$" for name in names)
    command += sorted({str(file_of(test, copy)) for test in tests})
    code, output = await run(command, cwd=copy)
    if code is None:
        return "a test that hung"
    found = re.search(r"^\s*not ok \d+ - (.+)$", output, re.M)
    if code == 1 and found and found[1] in names:
        return found[1]
    if code or not all(
        re.search(rf"^\s*ok \d+ - {re.escape(name)}$", output, re.M) for name in names
    ):
        raise AssertionError(output)
    return None


async def run(command, **options):
    """Run ``command``; return its exit status, or ``None`` after the time limit, and its output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, **options
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    except asyncio.TimeoutError:
        process.kill()
        return None, ""
    return process.returncode, output.decode()


def is_script(test):
    return test.partition("::")[0].endswith(".mjs")


def file_of(test, root=ROOT):
    """Return the file of a FILE::TEST below ``root``."""
    name = test.partition("::")[0]
    (file,) = root.glob(f"tests/js/{name}" if is_script(test) else f"tests/*/test_{name}.py")
    return file
