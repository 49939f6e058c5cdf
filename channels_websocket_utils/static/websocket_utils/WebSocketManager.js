/*
 * WebSocketManager: one WebSocket that comes back, with replies, streams and pushes sent to functions.
 *
 * States.  connecting -> open -> waiting -> connecting ..., and closed from anywhere. Each dial is
 * an attempt: what another one than the present still says (a late token, a late open, a late frame)
 * is dropped. leave() is the only way out of an attempt.
 *
 * Time.  One timer serves all: tick() does what is due by the clock. Timers are throttled in hidden
 * pages and stand still while a machine sleeps; a clock that is set back counts as standing still.
 *
 * Dialling.  dialIn() alone decides when. An attempt (token, dial, open) has 10 s. The wait after a
 * failure is 200 ms + random(0, min(15 s, 3 s * 1.4^n)); n falls to 0 after 5 s open, not on open:
 * a server that accepts and then drops must not be stormed.
 *
 * Tokens.  A token opens one socket, so none is ever dialled twice. A string serves the first dial
 * only; later ones ask the tokenURL, and without one the first loss ends in closed ("no_token"). A
 * token function, or else the tokenURL, is asked once a dial. Status 401 ("signed_out") or 403, or
 * an error with `fatal` ("token_refused"), stops; any other failure is a failed dial (`Retry-After`,
 * `error.retryAfter`: seconds).
 *
 * A refusal comes as open, then a close. So what is queued waits for the server's first word, or
 * 100 ms, lest it is lost with a socket that was never meant to stand; and after a string, which may
 * be old, all does. The state is connecting until then.
 *
 * Close codes.  judge() alone decides what one means. Stop: 1000 1002 1003 1007 1009 1010 4400 4403
 * 4409. 4401 (token refused): a fresh token, at most 2 in a row. 4410 (session ended): ask for a
 * token at once, once more after 3 s if refused, then stop. 4429: at least 30 s. Others: retry.
 *
 * Liveness.  Only if this socket has said websocket.ready: a ping after 25 s of silence, 10 s for the
 * answer, and any frame is one. A server that runs its handlers one after the other answers late:
 * while a call may still be running, death is 120 s after that call, and 240 s after the ping. A dead
 * link is left ("timeout").
 *
 * The page.  It wakes (visible, resumed, shown again, online): a link has 3 s to answer a ping, and who
 * waits dials at once, though never before a wait that the server has asked for. While it is hidden
 * nobody dials again, but for the token that is asked for at once: the wait goes on as "hidden" with
 * a delay of Infinity. Frozen, or left for the back/forward cache, it drops its link if it can come
 * back. Going offline only asks the link for a sign of life: a server on this machine or in this
 * house may be there all the same, so dials go on.
 *
 * Calls.  A message that cannot be sent now is queued: 100 messages, 1 MiB, 60 s at most. So it is while
 * more than 1 MiB waits in the socket. A call is settled once: by its reply, its time limit, its
 * signal, or the loss of the link. A frame that was sent is never sent again, and one whose caller was
 * told of a failure is never sent at all.
 *
 * Streams.  A part is a reply with `more`. The server stays 64 parts ahead of the reader if the call
 * was sent after websocket.ready, for which a stream waits 1 s; else nothing holds it back. A call
 * that fails here before its end is cancelled there.
 *
 * Users.  Another user may have signed in while the link was down. After a reconnect the queue is
 * sent only if the identity is known to be the same: as the token's answer tells, else the server's
 * websocket.ready (waited for 1 s), else options.identity. Known to differ: all calls are rejected
 * and the manager stops ("user_changed"). Not known: what was queued is rejected ("disconnected").
 */
!(function () {
  "use strict"

  const ATTEMPT_LIMIT = 10000
  const REPLY_LIMIT = 10000
  const QUEUE_LIMIT = 60000
  const QUEUE_MESSAGES = 100
  const QUEUE_BYTES = 1048576
  const BUFFERED_BYTES = 1048576
  const BUFFER_CHECK = 100
  const STEADY_AFTER = 5000
  const READY_LIMIT = 1000
  const PROOF_LIMIT = 100
  const ASK_AGAIN = 3000
  const TOO_MANY_WAIT = 30000
  const SILENCE_LIMIT = 25000
  const PONG_LIMIT = 10000
  const WAKE_LIMIT = 3000
  const CALL_LIMIT = 120000
  const CREDIT = 64
  const GRANT = 32
  const LONGEST_TIMER = 2147483647 // a longer one would fire at once

  const STOPS = { 1000: "ended", 4400: "bad_message", 4403: "refused", 4409: "replaced" }
  for (const code of [1002, 1003, 1007, 1009, 1010]) STOPS[code] = "protocol_error"

  // Page-wide, so that two managers born in the same moment still have different keys.
  let count = 0

  /**
   * What a call fails with and on("error") hears.
   *
   * `code` says what happened, `cause` is what a handler or a token function threw, and `id` is in the
   * server's log, where its code is `internal`.
   */
  class WebSocketManagerError extends Error {
    constructor(code, message = code, more) {
      super(message)
      this.name = "WebSocketManagerError"
      this.code = code
      Object.assign(this, more)
    }
  }

  const fault = (code, cause) => new WebSocketManagerError(code, code, cause && { cause })

  function serverFault(error) {
    const { code = "internal", message, id } = error || {}
    return new WebSocketManagerError(code, message, id && { id })
  }

  function demand(fact, claim, value) {
    if (fact) return
    throw new TypeError(`WebSocketManager: ${claim}, not ${value === null ? value : typeof value}`)
  }

  const limitOf = (timeout, usual) => (typeof timeout === "number" && timeout >= 0 ? timeout : usual)

  function resolve(path) {
    demand(typeof path === "string", "path must be a string", path)
    let url
    try {
      url = new URL(path, globalThis.location?.href)
      url.protocol = url.protocol.replace("http", "ws")
      url.hash = ""
    } catch {}
    if (/^wss?:/.test(url)) return url
    throw new TypeError("WebSocketManager: path must be a full wss: URL without a page")
  }

  function createLink(path, token, options) {
    const url = resolve(path)
    const asks = typeof token === "function"
    demand(asks || token == null || typeof token === "string", "token must be a string, a function or null", token)
    const ask = asks ? token : options.tokenURL && askEndpoint
    const prefix = Date.now().toString(36) + Math.random().toString(36).slice(2)
    const canComeBack = ask || !token
    const queue = new Map() // by key: calls that are not sent yet
    const calls = new Map() // by key: those that were sent and wait for a reply
    const listeners = new Map()
    const events = new Map()
    const { document } = globalThis
    const page = [
      [globalThis, "online", "offline", "pageshow", "pagehide"],
      [document, "visibilitychange", "resume", "freeze"],
    ]

    let state
    let told // the last event of it
    let attempt // the AbortController of the present dial
    let socket
    let live = false // open, and the queue is settled
    let unproven // what is sent may be lost with a socket that opens only to be closed
    let unusedToken = !asks && token
    let used // the last token

    let date = Date.now()
    let age = 1 // milliseconds, by the clock
    let timer
    let timerAt = Infinity
    let due = Infinity // when the state needs something done, and what
    let next

    let openedAt = Infinity
    let ready // the server said websocket.ready, so it answers pings
    let heardAt
    let pings // since the last frame
    let pingedAt // the first of them
    let pongBy
    let calledAt // the last call since the last frame

    let failures = 0 // since a connection last stood
    let refusals = 0 // 4401 in a row
    let prompt = true // a dial at once is free: 4401 and 4410 may not storm either
    let ended = 0 // 4410, then refused once
    let notBefore = 0 // the server asked to be left alone until then

    let wasOpen
    let identity // as this attempt has told
    let lastIdentity = options.identity // the last one told by anybody
    let queueIdentity // of the connection before, whose user the queue belongs to

    // Telling

    function guard(handler, detail, quiet) {
      try {
        return handler?.(detail)
      } catch (cause) {
        if (!quiet) emit("error", fault("handler_failed", cause))
      }
    }

    function log(level, detail) {
      guard(() => options.logger?.[level]?.("WebSocketManager", detail), null, true)
    }

    function dispatch(map, key, detail, quiet) {
      // A copy: handlers may add and remove while they run, and a removed one runs no more.
      for (const [handler, undo] of [...(map.get(key) || [])]) {
        if (map.get(key)?.get(handler) !== undo) continue
        // One before it has changed the state: the new one is told already.
        if (key === "state" && map === events && detail !== told) return
        if (undo.once) undo()
        guard(handler, detail, quiet)
      }
    }

    function emit(event, detail) {
      log(event === "error" ? event : "debug", detail)
      dispatch(events, event, detail, event === "error")
    }

    function subscribe(map, key, handler, { once, signal } = {}) {
      demand(typeof key === "string", "key must be a string", key)
      demand(typeof handler === "function", "handler must be a function", handler)
      const handlers = map.get(key) || new Map()
      if (handlers.has(handler)) return handlers.get(handler)
      const undo = () => {
        signal?.removeEventListener("abort", undo)
        if (handlers.get(handler) === undo) handlers.delete(handler)
        if (!handlers.size && map.get(key) === handlers) map.delete(key)
      }
      undo.once = once
      if (signal?.aborted) return undo
      signal?.addEventListener("abort", undo)
      map.set(key, handlers.set(handler, undo))
      return undo
    }

    // Time

    function clock() {
      const before = date
      date = Date.now()
      return (age += Math.max(0, date - before))
    }

    function wakeAt(at) {
      if (!(at < timerAt)) return
      clearTimeout(timer)
      timerAt = at
      timer = setTimeout(tick, Math.min(at - clock(), LONGEST_TIMER))
    }

    function plan(delay, act) {
      due = clock() + delay
      next = act
      wakeAt(due)
    }

    const deadline = (call) => Math.min(call.until, call.staleAt)

    function tick() {
      clearTimeout(timer)
      timerAt = Infinity
      tell(take((call) => deadline(call) <= clock()), "timeout")
      const lateness = clock() - due
      if (lateness >= 0) {
        due = Infinity
        next(lateness > WAKE_LIMIT)
      }
      flush()
      wakeAt(due)
      for (const call of [...queue.values(), ...calls.values()]) wakeAt(deadline(call))
    }

    // The page

    function watch(how) {
      for (const [target, ...names] of page) for (const name of names) target?.[how]?.(name, notice)
    }

    function notice({ type }) {
      // Without a way back the old token would be the end, where a page that is left is loaded anew.
      const isLeft = type === "pagehide" || type === "freeze"
      if (isLeft) return canComeBack && (attempt || due < Infinity) && lose(() => dialIn(Infinity, "hidden"))
      const isHidden = document?.hidden
      if (type === "visibilitychange" && isHidden) return
      if (type === "online") failures = 0
      ping(WAKE_LIMIT)
      tick()
      if (state !== "waiting" || isHidden || type === "offline") return
      dialIn(Math.max(0, notBefore - clock()), "wake")
    }

    // Liveness

    function ping(limit) {
      if (!ready) return
      const by = clock() + limit
      if (pings && clock() < pongBy) {
        pongBy = Math.min(pongBy, by)
      } else {
        if (!pings++) pingedAt = clock()
        pongBy = by
        control("ping")
      }
      plan(deathAt() - clock(), look)
    }

    function deathAt() {
      let last = calledAt
      for (const { sentAt } of calls.values()) last = Math.max(last, sentAt)
      // Calls that never stop would keep a dead link for ever.
      return Math.max(pongBy, Math.min(last, pingedAt + CALL_LIMIT) + CALL_LIMIT)
    }

    function look(isLate) {
      const wait = (pings ? deathAt() : heardAt + SILENCE_LIMIT) - clock()
      if (wait > 0) return plan(wait, look)
      // A timer that is late has slept, and the answer may stand in the queue behind it.
      if (!pings || (isLate && pings < 2)) return ping(isLate ? WAKE_LIMIT : PONG_LIMIT)
      lose(() => retry("timeout"))
    }

    // The state machine

    function change(next, reason = null, delay = 0) {
      state = next
      told = { state, reason, attempt: failures + 1, delay }
      emit("state", told)
    }

    function leave() {
      if (state === "open") queueIdentity = identity ?? options.identity
      const left = attempt
      // Not at once: who listens to the signal may close() or reconnect().
      Promise.resolve().then(() => left?.abort())
      socket?.close()
      attempt = socket = null
      due = openedAt = Infinity
      live = ready = false
    }

    // Ends the present link; what was sent on it is told when the next state stands.
    function lose(proceed) {
      if (clock() - openedAt >= STEADY_AFTER) forgive()
      const left = socket
      const lost = take((call) => calls.has(call.key))
      proceed()
      // A handler may have called meanwhile.
      tell([...lost, ...take((call) => left && call.link === left)], "disconnected")
    }

    function stop(reason, cause) {
      const code = reason === "no_token" || reason === "user_changed" ? reason : "closed"
      const rest = take()
      leave()
      watch("removeEventListener")
      clearTimeout(timer)
      timerAt = Infinity
      change("closed", reason)
      tell(rest, code)
      if (reason !== "closed" && reason !== "ended") emit("error", fault(reason, cause))
    }

    // The one place that decides when to dial.
    function dialIn(delay, reason) {
      if (!canComeBack && !unusedToken) return stop("no_token")
      leave()
      if (!delay) return dial(reason)
      plan(delay, () => (document?.hidden ? change("waiting", "hidden", Infinity) : dial(reason)))
      change("waiting", reason, delay)
    }

    function retry(reason, least, atOnce) {
      if (failures >= (options.maxRetries ?? Infinity)) return stop("max_retries")
      const mine = attempt
      const own = guard(options.backoff, failures)
      if (mine !== attempt) return
      const valid = typeof own === "number" && own >= 0
      const pause = valid ? own : 200 + Math.random() * Math.min(15000, 3000 * 1.4 ** failures)
      failures++
      const rest = least > 0 ? least : 0
      notBefore = clock() + rest
      // No pause is a pause too: a hidden page does not dial.
      dialIn(atOnce ? 0 : pause + rest || 1, reason)
    }

    async function dial(reason) {
      const mine = (attempt = new AbortController())
      const target = new URL(url)
      identity = undefined
      plan(ATTEMPT_LIMIT, () => retry("timeout"))
      change("connecting", reason)
      if (mine !== attempt) return

      let given = (unproven = unusedToken)
      unusedToken = ""
      // Even what fails at once fails later, when who made the manager listens.
      if (!given && ask) {
        let answer
        try {
          answer = await (async () => ask({ attempt: failures + 1, signal: mine.signal }))()
          given = answer?.token ?? answer
          if (!given || typeof given !== "string" || given === used) throw new Error("No token")
        } catch (error) {
          return mine !== attempt || judgeRefusal(error || {})
        }
        if (mine !== attempt) return
        ended = 0
        learn(answer.identity)
        if (mine !== attempt) return
      }

      let link
      used = given
      try {
        const offers = given && options.tokenSource === "subprotocol"
        if (given && !offers) target.pathname = url.pathname.replace(/\/*$/, "/") + encodeURIComponent(given)
        link = socket = new WebSocket(target.href, offers ? ["websocket.token", given] : [])
      } catch {
        // What the browser says here holds the URL, and with it the token.
        await null
        return mine !== attempt || retry("disconnected")
      }
      link.onopen = () => (mine === attempt ? opened() : link.close())
      link.onmessage = (event) => mine === attempt && receive(event.data)
      link.onclose = (event) => mine === attempt && judge(event)
    }

    function forgive() {
      failures = refusals = ended = 0
      prompt = true
    }

    function opened() {
      openedAt = clock()
      const known = wasOpen ? queueIdentity : lastIdentity
      const isStranger = identity == null && known != null
      unproven ||= used && queue.size
      if (!unproven && !isStranger) return admit()
      plan(isStranger ? READY_LIMIT : PROOF_LIMIT, admit)
    }

    // Sends the queue if it is this connection's user's, and from here on messages go out directly.
    function admit() {
      const user = identity ?? options.identity
      const same = !wasOpen || (user != null && user === queueIdentity)
      const dropped = same ? [] : take()
      due = Infinity
      wasOpen = live = true
      flush()
      change("open")
      tell(dropped, "disconnected")
      tick()
    }

    function learn(word) {
      if (word == null || identity != null) return
      identity = word
      const known = lastIdentity
      lastIdentity = word
      if (known == null || known === word) return
      queueIdentity = word
      if (!options.allowUserChange) return stop("user_changed")
      tell(take(), "user_changed")
      emit("error", fault("user_changed"))
    }

    // The one place that decides what a close code means.
    function judge(event) {
      const mine = attempt
      const wish = guard(options.shouldReconnect, event)
      if (mine !== attempt) return
      const { code } = event
      lose(() => {
        const fresh = code === 4401 || code === 4410
        let reason = STOPS[code]
        if (code === 4401 && ++refusals > 2) reason = "token_refused"
        if (wish === false) reason = reason || "declined"
        if (wish === true) reason = undefined
        if (code === 4410) ended = 1
        const atOnce = fresh && prompt
        if (fresh) prompt = false
        if (reason) stop(reason)
        else retry("disconnected", code === 4429 && TOO_MANY_WAIT, atOnce)
      })
    }

    // What it means that no token was to be had.
    function judgeRefusal(error) {
      const { fatal, status, retryAfter } = error
      if (!fatal && status !== 401 && status !== 403) {
        log("warn", error)
        return retry("token_failed", Number(retryAfter) * 1000)
      }
      if (fatal || ended !== 1) return stop(ended || status === 401 ? "signed_out" : "token_refused", error)
      ended = 2
      notBefore = clock() + ASK_AGAIN
      dialIn(ASK_AGAIN, "signed_out")
    }

    async function askEndpoint({ signal }) {
      const { csrfToken } = options
      const csrf =
        (typeof csrfToken === "function" ? csrfToken() : csrfToken) ||
        // Before the page's own, which is stale once somebody has signed in from another tab.
        /(?:^|; *)csrftoken=([^;]*)/.exec(document?.cookie)?.[1] ||
        document?.querySelector("[data-csrf-token]")?.getAttribute("data-csrf-token")
      const response = await fetch(options.tokenURL, {
        method: "POST",
        credentials: "same-origin",
        headers: { "Content-Type": "application/json", ...(csrf && { "X-CSRFToken": csrf }) },
        body: JSON.stringify({ path: url.pathname }),
        signal,
      })
      // A JSON error would quote what it read, and that may hold a token.
      if (response.ok) return response.json().catch(() => null)
      const { status, headers } = response
      const retryAfter = headers?.get("Retry-After")
      throw Object.assign(new Error(`tokenURL answered ${status}`), { status, retryAfter })
    }

    // Calls

    // What only our server understands; about a call only on the link that it was sent on.
    function control(type, call, more) {
      if (!ready || (call && call.link !== socket)) return
      socket.send(JSON.stringify({ type: `websocket.${type}`, reply_key: call?.key, ...more }))
    }

    function release(call) {
      call.signal?.removeEventListener("abort", call.abort)
      return queue.delete(call.key) || calls.delete(call.key)
    }

    function take(test = () => true) {
      return [...queue.values(), ...calls.values()].filter((call) => test(call) && release(call))
    }

    function tell(taken, code) {
      for (const call of taken) {
        control("cancel", call)
        call.reject(fault(code))
      }
    }

    // A closing socket drops silently, and one that takes more than it can send has no end.
    function isFree({ waitsForReady }) {
      if (!live || socket.readyState > 1 || socket.bufferedAmount > BUFFERED_BYTES) return false
      return !waitsForReady || ready || clock() >= openedAt + READY_LIMIT
    }

    function flush() {
      for (const call of queue.values()) {
        if (deadline(call) <= clock()) continue
        if (!isFree(call)) return live && wakeAt(clock() + BUFFER_CHECK)
        transmit(call)
      }
    }

    function transmit(call) {
      const { key, frame, answer, takesParts } = call
      queue.delete(key)
      call.link = socket
      call.staleAt = Infinity
      call.sentAt = calledAt = clock()
      if (answer) calls.set(key, call)
      call.isPaced = ready && takesParts
      // The frame is the message as it was when it was handed in.
      socket.send(call.isPaced ? `${frame.slice(0, -1)},"credit":${CREDIT}}` : frame)
    }

    function submit(message, call) {
      message = message?.toJSON?.() ?? message
      demand(typeof message?.type === "string", "type of the message must be a string", message?.type)
      const { answer, signal, timeout } = call
      const key = (call.key = `${prefix}.${++count}`)
      const frame = (call.frame = JSON.stringify(answer ? { ...message, reply_key: key } : message))
      if (state === "closed") throw fault("closed")
      if (signal?.aborted) throw fault("aborted")
      flush()
      if (queue.size || !isFree(call)) {
        let bytes = (call.size = new TextEncoder().encode(frame).length)
        for (const { size = 0 } of queue.values()) bytes += size
        if (queue.size >= QUEUE_MESSAGES || bytes > QUEUE_BYTES) throw fault("overflow")
      }
      call.until = answer ? clock() + limitOf(timeout, REPLY_LIMIT) : Infinity
      call.staleAt = clock() + QUEUE_LIMIT
      call.taken = 0
      call.abort = () => release(call) && tell([call], "aborted")
      signal?.addEventListener("abort", call.abort)
      queue.set(key, call)
      flush()
      wakeAt(deadline(call))
      return call
    }

    // The reader has taken a part.
    function grant(call) {
      const isDue = ++call.taken % GRANT === 0
      if (isDue && call.isPaced && calls.has(call.key)) control("more", call, { parts: GRANT })
    }

    function receive(data) {
      const mine = attempt
      refusals = pings = 0
      heardAt = clock()
      calledAt = -Infinity
      let frame
      try {
        frame = JSON.parse(data)
      } catch {}
      if (!frame || typeof frame !== "object" || Array.isArray(frame)) {
        return emit("error", fault("bad_message"))
      }
      const { key, ...rest } = frame
      const isReady = key === "websocket.ready"
      if (isReady) {
        ready = true
        learn(frame.identity)
      }
      if (!live && mine === attempt && (isReady || unproven)) admit()
      if (mine !== attempt) return
      if (isReady) {
        plan(SILENCE_LIMIT, look)
        flush()
      }
      if (key === "websocket.error") return emit("error", serverFault(frame.error))
      const call = calls.get(key)
      if (!call) return dispatch(listeners, key, frame)

      // true is a part and false the end of a stream; a reply may have a `more` of its own.
      const more = typeof rest.more === "boolean" ? rest.more : null
      if (more !== null) delete rest.more
      if (!more || !call.takesParts) release(call)
      if (frame.error) return call.reject(serverFault(frame.error))
      if (more !== null && !call.takesParts) {
        control("cancel", call)
        return call.reject(new WebSocketManagerError("stream", "This method streams: use stream()"))
      }
      call.until = Infinity
      call.sentAt = -Infinity // it runs beside other calls, and holds up no pong
      call.answer(Object.keys(rest).join() === "data" ? rest.data : rest, more)
    }

    watch("addEventListener")
    dial("start")

    return {
      state: () => state,

      /**
       * Send `message`; its reply, or each part of a stream, goes to `replyHandler`, its failure to
       * on("error").
       *
       * Returns true if it was sent, false if it is queued. Throws a WebSocketManagerError:
       * `overflow` if the queue is full, `closed` if the manager is.
       *
       * @param {object} message
       * @param {function(*)} [replyHandler]
       * @returns {boolean}
       */
      sendJSON(message, replyHandler) {
        demand(!replyHandler || typeof replyHandler === "function", "replyHandler must be a function", replyHandler)
        const answer = (value, more) => {
          if (more !== false) guard(replyHandler, value)
          if (more) grant(call)
        }
        const call = submit(message, {
          answer: replyHandler && answer,
          reject: (error) => emit("error", error),
          takesParts: replyHandler,
        })
        return !queue.has(call.key)
      },

      /**
       * Send `message` and return a promise of its reply, rejected with a WebSocketManagerError:
       * `stream` if the method streams.
       *
       * @param {object} message
       * @param {{timeout?: number, signal?: AbortSignal}} [options] The time limit is 10 s by default.
       * @returns {Promise<*>}
       */
      request: (message, { timeout, signal } = {}) =>
        new Promise((answer, reject) => {
          submit(message, { answer, reject, timeout, signal })
        }),

      /**
       * Send `message`, at once, and return an async iterator of the parts that answer it.
       *
       * What came before an error is delivered before it is thrown. Leaving the loop cancels the
       * stream on the server. A method that does not stream gives one part.
       *
       * @param {object} message
       * @param {{timeout?: number, signal?: AbortSignal}} [options] The time limit is for each part:
       *   while the reader waits, or while it takes nothing and the server may send no more. None by
       *   default.
       * @returns {AsyncIterableIterator<*>}
       */
      stream(message, { timeout, signal } = {}) {
        const time = limitOf(timeout, Infinity)
        const parts = []
        let call
        let isOver
        let error
        let awaken // the reader, if it waits

        function stir() {
          awaken?.()
          awaken = null
          limit()
        }

        // Time counts while one end waits for the other.
        function limit() {
          if (isOver) return
          const isCreditOut = call.isPaced && parts.length + (call.taken % GRANT) >= CREDIT
          call.until = awaken || isCreditOut ? clock() + time : Infinity
          wakeAt(call.until)
        }

        function answer(value, more) {
          if (more !== false) parts.push(value)
          isOver = !more
          stir()
        }

        function end(cause) {
          isOver = true
          error = cause
          stir()
        }

        async function* read() {
          for (;;) {
            while (!parts.length && !isOver) {
              await new Promise((done) => {
                awaken = done
                limit()
              })
            }
            if (!parts.length) break
            const part = parts.shift()
            grant(call)
            limit()
            yield part
          }
          if (error) throw error
        }

        try {
          const how = { timeout: Infinity, takesParts: true, waitsForReady: true }
          call = submit(message, { answer, reject: end, signal, ...how })
        } catch (cause) {
          end(cause)
        }

        const reader = read()
        // A generator that waits, or never began, would not hear that it is left.
        for (const way of ["return", "throw"]) {
          const leaveLoop = reader[way]
          reader[way] = function (given) {
            if (!isOver && release(call)) control("cancel", call)
            end()
            return leaveLoop.call(reader, given)
          }
        }
        return reader
      },

      /**
       * Call `handler` with every frame that the server pushes under `key`; returns the undo.
       *
       * @param {string} key
       * @param {function(object)} handler
       * @param {{once?: boolean, signal?: AbortSignal}} [options]
       * @returns {function()}
       */
      addMessageListener: (...args) => subscribe(listeners, ...args),

      /**
       * Undo addMessageListener().
       *
       * @param {string} key
       * @param {function(object)} handler
       */
      removeMessageListener: (key, handler) => listeners.get(key)?.get(handler)?.(),

      /**
       * Hear "state" ({state, reason, attempt, delay}) or "error" (a WebSocketManagerError); returns
       * the undo.
       *
       * `attempt` is 1 for the first dial, and one more than the failures since a connection last
       * stood; `delay` is the milliseconds until the next dial: Infinity until the page is seen.
       *
       * @param {"state"|"error"} event
       * @param {function(object)} handler
       * @param {{once?: boolean, signal?: AbortSignal}} [options]
       * @returns {function()}
       */
      on: (...args) => subscribe(events, ...args),

      /** Close for good: calls are rejected as `closed`, no timer and no listener of the page is left. */
      close() {
        if (state !== "closed") stop("closed")
      },

      /** Dial anew at once, from any state. */
      reconnect() {
        if (state === "closed") watch("addEventListener")
        lose(() => {
          forgive()
          dialIn(0, "reconnect")
        })
      },
    }
  }

  /**
   * A WebSocket that comes back. May be called without `new`.
   *
   * Without a path all of it is read from the page: the first script, or the body, with a
   * `data-socket-path`, and its `data-token`, `data-token-url` and `data-token-source`; what is passed
   * goes before them.
   *
   * @param {string} [path] Path or full URL of the socket; the token is added as its last part, unless
   *   it is offered as a subprotocol.
   * @param {string|function({attempt: number, signal: AbortSignal})|null} [token] A string for the
   *   first dial, or a function asked once a dial that returns (a promise of) a token or
   *   `{token, identity}`. A thrown `status` 401 or 403, or `fatal`, stops; `retryAfter` is seconds.
   * @param {object} [options]
   * @param {string} [options.tokenURL] The endpoint that issues tokens.
   * @param {"path"|"subprotocol"} [options.tokenSource] "subprotocol" offers the token as one, which
   *   keeps it out of the URL; the gate must name that source. By default "path".
   * @param {string|function(): string} [options.csrfToken] For the tokenURL; else the cookie, else
   *   the first `data-csrf-token` attribute in the page, for a cookie that is HttpOnly.
   * @param {string} [options.identity] Whose page this is, as the server names them.
   * @param {boolean} [options.allowUserChange] Go on when another user has signed in.
   * @param {number} [options.maxRetries] How often it dials again in a row; no limit by default.
   * @param {function(number): number} [options.backoff] Milliseconds to wait after n failures.
   * @param {function(CloseEvent): boolean} [options.shouldReconnect] true or false overrides what
   *   the close code means.
   * @param {object} [options.logger] Something like `console`; nothing is logged without it.
   */
  function WebSocketManager(path, token = null, options = {}) {
    if (!new.target) return new WebSocketManager(path, token, options)
    // Of no other element: what people write may come with attributes of theirs.
    const source = "script[data-socket-path],body[data-socket-path]"
    const element = path == null && globalThis.document?.querySelector(source)
    if (element) {
      const read = (name) => element.getAttribute(`data-${name}`) || undefined
      path = read("socket-path")
      token = token ?? read("token")
      // It opens one socket, and so serves one manager.
      element.removeAttribute("data-token")
      options = { tokenURL: read("token-url"), tokenSource: read("token-source"), ...options }
    }
    this._link = createLink(path, token, options)
  }

  // On the prototype, so that a subclass can override them and call super.
  const methods = "sendJSON request stream addMessageListener removeMessageListener on close reconnect"
  for (const name of methods.split(" ")) {
    WebSocketManager.prototype[name] = function (...args) {
      return this._link[name](...args)
    }
  }

  Object.defineProperty(WebSocketManager.prototype, "state", {
    /** "connecting", "open", "waiting" or "closed". */
    get() {
      return this._link.state()
    },
  })

  WebSocketManager.WebSocketManagerError = WebSocketManagerError

  if (typeof module === "object" && module.exports) {
    module.exports = WebSocketManager.default = WebSocketManager
  } else {
    globalThis.WebSocketManager = WebSocketManager
  }
})()
